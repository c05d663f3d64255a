"""Training in bfloat16 follows nearly the same gradients, and its losses and gradients are float32."""

import torch

from avb_service.fitting import Fit
from avb_service.training.manner import Manner


def test_gradients_in_bfloat16_are_nearly_those_in_float32(small, method, tmp_path):
    engine = Fit(small(method), tmp_path).engine
    for turn in engine.turns:
        played = []
        for precision in ("float32", "bf16"):
            engine._settle(Manner("off", precision))
            played.append(turn.gradient(engine._slices(0, engine._draw_shared(0))))
        plain, lowered = (torch.cat(each.gradient) for each in played)
        assert lowered.dtype == played[1].report.dtype == torch.float32
        apart = (plain - lowered).norm() / plain.norm()
        assert 0 < apart < 0.1, f"{turn.players[0].name}: {apart}"
