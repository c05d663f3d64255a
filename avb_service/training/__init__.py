"""How an algorithm's game is played: rounds, turns, agreement among workers; pure torch."""
