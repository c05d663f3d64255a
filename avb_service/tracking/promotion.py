"""Who is champion: records of held-out likelihoods are compared, and aliases moved. No model is downloaded or built.

Floor 7.
"""

from collections.abc import Callable, Sequence

from avb_service.errors import UserError
from avb_service.records import LIKELIHOOD, LikelihoodRecord
from avb_service.tracking.download import read_file
from avb_service.tracking.external import kept
from avb_service.tracking.registry import RegisteredVersion, leaderboard, set_alias

CHAMPION, CHALLENGER = "champion", "challenger"
REASON = "promotion"  # tag of a version


def promote(name: str, version: int, override: str | None = None, uri: str | None = None) -> str:
    """Make a version champion if it has earned that, or because somebody takes it upon themselves.

    Args:
        name: of the registered model.
        version: its number.
        override: why it is to be champion although it has not; recorded with it.
        uri: where, as `tracking_uri` reads it.

    Returns:
        The reason.

    Raises:
        UserError: it has not earned it; says why. Or the override gives no reason.
    """
    if override is not None and not override.strip():
        raise UserError(f"--override: given {override!r}, expected a reason, which is kept with the model")
    rows = versions_of(name, uri)
    row = next((row for row in rows if row.version == version), None)
    if override is None and row is not None and CHAMPION in row.aliases:  # perhaps by a call that was cut off
        set_alias(name, CHAMPION, version, uri, instead_of=CHALLENGER)
        return row.tags.get(REASON, "it is champion already")
    alias, reason = _earned(name, record_of(f"models:/{name}/{version}", uri), uri, rows)
    if alias != CHAMPION:
        if override is None:
            raise UserError(f"models:/{name}/{version} stays what it is: {reason}. --override REASON makes it champion")
        reason = f"overridden ({override}), although {reason}"
    set_alias(name, CHAMPION, version, uri, tags={REASON: reason}, instead_of=CHALLENGER)
    return reason


def award(
    name: str, version: int, record: LikelihoodRecord, uri: str | None, check: Callable[[], None]
) -> tuple[str, str]:
    """Give a version the alias that it has earned, against the champion that there is when it gets it.

    Args:
        name: of the registered model.
        version: its number.
        record: of that version.
        uri: where, as `tracking_uri` reads it.
        check: raises where the version is not ours to move any more.

    Returns:
        Champion or challenger, and why.
    """
    alias, reason = _earned(name, record, uri, versions_of(name, uri))
    check()
    set_alias(name, alias, version, uri, tags={REASON: reason})
    return alias, reason


def _earned(
    name: str, record: LikelihoodRecord, uri: str | None, rivals: Sequence[RegisteredVersion]
) -> tuple[str, str]:
    """The alias that a model has earned and why, by the champion that there is at the end.

    MLflow cannot move an alias on a condition. So it is decided anew as long as the champion changes meanwhile; what
    is left between the last look and the move is one request.
    """
    while True:
        alias, reason = promotion(rivals, record, uri)
        before, rivals = _champion(rivals), versions_of(name, uri)
        if _champion(rivals) == before:
            return alias, reason


def promotion(rivals: Sequence[RegisteredVersion], record: LikelihoodRecord, uri: str | None) -> tuple[str, str]:
    """Whether a model has earned to be champion: its record against that of the champion.

    Args:
        rivals: what is registered under its name.
        record: of the model.
        uri: where, as `tracking_uri` reads it.

    Returns:
        Champion or challenger, and why.
    """
    if (objection := record.objection) is not None:
        return CHALLENGER, objection
    champion = _champion(rivals)
    if champion is None:
        return CHAMPION, "the first of its name whose likelihood can be believed"
    try:
        comparison = record.against(record_of(champion, uri))
    except UserError as error:
        return CHALLENGER, f"cannot be compared with {champion}: {error}"
    if comparison.better:
        return CHAMPION, f"better than {champion}: {comparison}"
    return CHALLENGER, f"no better than {champion} beyond two standard errors: {comparison}"


def _champion(rivals: Sequence[RegisteredVersion]) -> str | None:
    return next((row.uri for row in rivals if CHAMPION in row.aliases), None)


def record_of(model: str, uri: str | None = None) -> LikelihoodRecord:
    """The held-out likelihoods that a model carries; nothing else of it is read, so it need not be one that loads.

    Args:
        model: as `pull` takes it; or runs:/ID of a run that keeps those of a model that was not made here.
        uri: where, as `tracking_uri` reads it.

    Raises:
        UserError: there is no such model, or it was published without.
    """
    if model.startswith("runs:/") and (record := kept(model, uri)) is not None:
        return record
    content = read_file(model, LIKELIHOOD, uri)
    if content is None:
        raise UserError(f"{model} carries no held-out likelihoods; publish it anew")
    return LikelihoodRecord.from_json(content)


def versions_of(model: str, uri: str | None) -> list[RegisteredVersion]:
    """What is registered under a name, the newest first."""
    return [row for row in leaderboard(uri) if row.name == model]
