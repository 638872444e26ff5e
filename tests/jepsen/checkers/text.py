"""How complaints show what may be long."""


def brief(value: object) -> str:
    text = str(value)
    return text if len(text) < 200 else f"{text[:90]} ... {text[-90:]}"
