"""Scenes in words: one short caption, one long one that says everything."""

import numpy as np

from data_pipeline.synthetic.cycles import CYCLES
from data_pipeline.synthetic.scene import Body, Scene

_NUMBERS = ("no", "one", "two", "three")
_DARK = ("a dark background", "a plain dark background", "darkness")
_TEXTURES = {
    "plain": "a plain background",
    "gradient": "a smoothly shaded background",
    "stripes": "a striped background",
    "checker": "a chequered background",
    "clouds": "a cloudy background",
}


def captions(scene: Scene, rng: np.random.Generator) -> list[tuple[str, str]]:
    """[(caption, source)]: short, then long."""
    if scene.world in ("quickstart", "cycles"):
        short, long = _single(scene, rng)
    else:
        short, long = _short(scene), _long(scene, rng)
    return [(short, "synthetic short"), (long, "synthetic long")]


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _noun(body: Body) -> str:
    return f"{body.colour} {body.shape}"


def _toward(direction: str) -> str:
    return {"left": "to the left", "right": "to the right", "up": "upwards", "down": "downwards"}.get(
        direction, direction
    )


def _single(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """Of a world that shows one object over dark ground."""
    body = scene.bodies[0]
    thing, ground = _article(_noun(body)), str(rng.choice(_DARK))
    if body.motion in CYCLES:
        does = CYCLES[body.motion]
        long = (f"A small video of {thing} that {does} over {ground}.", f"On {ground}, {thing} {does}, over and over.")
        return f"{thing} {does}", str(rng.choice(long))
    if body.direction is None:
        long = (f"A small picture of {thing} on {ground}.", f"{thing.capitalize()} in front of {ground}.")
        return thing, str(rng.choice(long))
    toward = _toward(body.direction)
    long = (
        f"A small video of {thing} that moves {toward} over {ground}.",
        f"{thing.capitalize()} is moving {toward} in front of {ground}.",
        f"On {ground}, {thing} moves {toward} at a steady speed.",
    )
    if scene.occluder is None:
        return f"{thing} moves {body.direction}", str(rng.choice(long))
    return f"{thing} moves {body.direction} behind a grey bar", f"{rng.choice(long)} It passes behind a grey bar."


def _short(scene: Scene) -> str:
    if scene.num_frames == 1:
        return " and ".join(_article(_noun(body)) for body in scene.bodies)
    if scene.physics == "collide":
        return " and ".join(_article(_noun(body)) for body in scene.bodies) + " collide"
    return " and ".join(f"{_article(_noun(body))} {_verb(body)}" for body in scene.bodies)


def _verb(body: Body) -> str:
    if body.direction is None or body.motion == "rest":
        return "stays still"
    if body.motion == "fall":
        return "falls and bounces"
    if body.motion == "bounce":
        return f"moves {body.direction} and bounces"
    return f"moves {body.direction}"


def _clause(scene: Scene, body: Body) -> str:
    pace = "slowly" if body.speed_px_per_s < 0.45 * max(scene.height, scene.width) else "quickly"
    size = min(scene.height, scene.width)
    adjective = "small" if body.size_px < 0.2 * size else "large" if body.size_px > 0.32 * size else "medium-sized"
    thing = f"a {adjective} {_noun(body)}"
    if scene.num_frames == 1:
        return thing
    if body.direction is None or body.motion == "rest":
        return f"{thing} stays still"
    if body.motion == "fall":
        return f"{thing} falls to the ground and bounces back up"
    toward = _toward(body.direction)
    if body.motion == "bounce":
        return f"{thing} moves {toward} {pace}, bounces off the edge and comes back"
    if body.motion == "collide":
        return f"{thing} moves {toward} {pace} until it is hit"
    return f"{thing} moves {toward} {pace}"


def _long(scene: Scene, rng: np.random.Generator) -> str:
    clauses = [_clause(scene, body) for body in scene.bodies]
    text = ", and ".join(clauses)
    ground = _TEXTURES[scene.background.kind]
    medium = "picture" if scene.num_frames == 1 else "video"
    count = f"{_NUMBERS[len(clauses)]} object{'s' if len(clauses) > 1 else ''}"
    opening = str(rng.choice([f"In front of {ground}, ", f"A {medium} of {count} over {ground}: ", f"Over {ground}, "]))
    sentences = [f"{opening}{text}."]
    if scene.physics == "collide":
        sentences.append("They collide and part again.")
    if scene.occluder is not None and scene.world == "demo":  # there the track is drawn to cross the bar
        sentences.append("A grey bar stands in front of the scene, and the motion passes behind it.")
    elif scene.occluder is not None:
        sentences.append("A grey bar stands in front of the scene.")
    sentences.append(scene.camera.words)
    return " ".join(sentence for sentence in sentences if sentence)
