"""Scenes of several concepts: their pictures are what their concepts make of one drawing."""

from __future__ import annotations

import torch

from loracomp.training.corpus.concepts import Concept
from loracomp.training.corpus.looks import Look
from loracomp.training.corpus.pictures import draw
from loracomp.training.corpus.plan import concepts
from loracomp.training.gate.scenes import Director, rendered
from loracomp.training.glyph.store import Store


def test_scenes_hold_two_to_four_concepts_that_their_captions_name(store: Store) -> None:
    rows = [concept for concept in concepts(store) if concept.split == "train"]
    table = {concept.id: concept for concept in rows}
    scenes = Director(rows, store, 0).together(120)
    assert {len(scene.parts) for scene in scenes} == {2, 3, 4}
    for scene in scenes:
        used = [table[part] for part in scene.parts]
        assert len(set(scene.parts)) == len(used)
        assert all(concept.trigger in scene.shot.caption for concept in used)
        assert sum(bool(concept.subjects) for concept in used) <= 1
        assert len({concept.artwork for concept in used if concept.artwork}) <= 1
        looks = [look for concept in used for look in concept.looks]
        assert sorted(map(repr, looks)) == sorted(map(repr, scene.concept.looks))
        assert sum(look.stage == "filter" for look in looks) <= 1
    again = Director(rows, store, 0).together(120)
    assert [scene.shot for scene in again] == [scene.shot for scene in scenes]
    other = Director(rows, store, 1).together(120)
    assert [scene.shot for scene in other] != [scene.shot for scene in scenes]


def test_the_truth_is_the_look_applied_to_the_subject(store: Store) -> None:
    slug = next(concept for concept in concepts(store) if concept.subjects).subjects[0]
    thing = Concept("c001", "subject", "zup", "train", subjects=(slug,), names=(slug,))
    red = Look.of("recolor", "flat", color="coral")
    tiles = Look.of("filter", "tiled", count=2)
    style = Concept("c002", "style", "mip", "train", looks=(red,))
    grid = Concept("c003", "filter", "lod", "train", looks=(tiles,))
    scenes = Director([thing, style, grid], store, 0).together(40)
    scene = next(scene for scene in scenes if scene.parts == ("c001", "c002", "c003"))
    assert scene.shot.caption.startswith("a zup emoji, mip style, lod style")
    both = Concept("c009", "mixture", "x", "train", subjects=(slug,), names=(slug,), looks=(red, tiles))
    wanted = draw(both, [scene.shot])[0].permute(2, 0, 1)
    assert torch.equal(rendered([scene], 1)[0], wanted)
    plain = draw(thing, [scene.shot])[0].permute(2, 0, 1)
    assert not torch.equal(wanted, plain)
