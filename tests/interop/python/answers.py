"""What the clients here answer when they are asked: the same every time, and the same as
../node/answers.mjs."""

SAMPLED = {
    "role": "assistant",
    "model": "interop",
    "content": {"type": "text", "text": "Well."},
    "stopReason": "endTurn",
}
ROOTS = {"roots": [{"uri": "file:///interop", "name": "interop"}]}
# Both names are fields that servers here ask for; further ones do no harm.
FILLED = {"action": "accept", "content": {"name": "Somebody", "response": "Yes"}}
OPENED = {"action": "accept"}


def plain(model):
    """A model as it was on the wire: fields that were absent stay so."""
    return model.model_dump(mode="json", by_alias=True, exclude_unset=True)


def elicited(params):
    """The answer to one elicitation."""
    return OPENED if getattr(params, "mode", None) == "url" else FILLED
