"""plan.json says which channels stay, can be read back, and can be edited."""

from __future__ import annotations

import json

import numpy as np
import pytest

from onnxprune import plan_file
from onnxprune.errors import PlanError
from onnxprune.fileio import Transaction
from onnxprune.graph import analysis as analysing
from onnxprune.graph import io
from onnxprune.options import Options
from onnxprune.pipeline import schedule


@pytest.fixture
def analysis(tiny_path):
    return analysing.analyse(io.load(tiny_path), ("conv2",))


@pytest.fixture
def plan(analysis):
    return schedule.make_plan(analysis, Options(reduce={"flops": 0.5}, round_to=1))


@pytest.fixture
def path(analysis, plan, tmp_path):
    target = tmp_path / "plan.json"
    plan_file.write(target, plan, analysis.trace, "tiny.onnx")
    return target


def test_plan_read_back_is_the_plan_written(analysis, plan, path):
    found = plan_file.read(path, analysis.trace, analysis.model.digest)
    np.testing.assert_array_equal(found.keep, plan.keep)
    assert not plan.keep.all()
    assert (found.digest, found.path) == (plan.digest, plan.path)
    assert found.settings == json.loads(json.dumps(plan.settings))


def test_file_says_what_it_is_and_lists_one_group_a_line(analysis, plan, path):
    content = json.loads(path.read_text())
    assert content["schema"] == "onnxprune.plan/1"
    assert content["model"] == {"name": "tiny.onnx", "sha256": analysis.model.digest}
    assert content["settings"]["reduce"] == {"flops": 0.5}
    assert content["path"][-1]["flops_removed"] >= 0.5
    assert content == json.loads(json.dumps(plan_file.to_dict(plan, analysis.trace, "tiny.onnx")))
    lines = [line for line in path.read_text().splitlines() if '"name": "conv' in line]
    assert [json.loads(line.rstrip(","))["name"] for line in lines] == ["conv1", "conv2"]
    assert {group["name"]: group["pinned"] for group in content["groups"]} == {"conv1": 0, "conv2": 16, "head": 4}


def test_order_and_repetition_of_indices_do_not_matter(analysis, path):
    content = json.loads(path.read_text())
    content["groups"].reverse()
    for group in content["groups"]:
        group["keep"] = group["keep"][::-1] + group["keep"][:1]
    other = path.with_name("other.json")
    other.write_text(json.dumps(content))
    digest = analysis.model.digest
    np.testing.assert_array_equal(
        plan_file.read(other, analysis.trace, digest).keep, plan_file.read(path, analysis.trace, digest).keep
    )


def test_only_schema_model_and_groups_are_needed(analysis, plan, path):
    content = json.loads(path.read_text())
    for group in content["groups"]:
        del group["layers"], group["channels"], group["pinned"]
    del content["settings"], content["path"]
    path.write_text(json.dumps(content))
    found = plan_file.read(path, analysis.trace, analysis.model.digest)
    np.testing.assert_array_equal(found.keep, plan.keep)
    assert (found.settings, found.path) == ({}, ())


def test_plan_of_another_model_is_refused(analysis, path):
    with pytest.raises(PlanError, match="another model") as caught:
        plan_file.read(path, analysis.trace, "0" * 64)
    assert caught.value.exit_code == 1


def test_plan_is_not_written_when_what_it_goes_with_fails(analysis, plan, tmp_path):
    def fail() -> None:
        with Transaction() as files:
            plan_file.write(tmp_path / "plan.json", plan, analysis.trace, "tiny.onnx", files)
            raise RuntimeError

    before = sorted(tmp_path.iterdir())
    with pytest.raises(RuntimeError):
        fail()
    assert sorted(tmp_path.iterdir()) == before


def test_fingerprint_is_of_channels_and_edits_alone(analysis, plan, path):
    content = json.loads(path.read_text())
    found = plan_file.fingerprint(content)
    assert found == plan_file.fingerprint(plan_file.to_dict(plan, analysis.trace, "another name"))
    content["settings"], content["groups"] = {}, content["groups"][::-1]
    assert plan_file.fingerprint(content) == found
    assert plan_file.fingerprint({**content, "blocks": [[{"kind": "kernel"}]]}) != found
    content["groups"][0]["keep"] = content["groups"][0]["keep"][1:]
    assert plan_file.fingerprint(content) != found


def test_plan_of_another_result_is_refused(analysis, path):
    stored, digest = plan_file.fingerprint(json.loads(path.read_text())), analysis.model.digest
    for known in (stored, ""):  # results of earlier versions say nothing
        plan_file.refuse_other(path, digest, path.with_name("small.onnx"), known)
    with pytest.raises(PlanError, match="do not belong together") as caught:
        plan_file.refuse_other(path, digest, path.with_name("small.onnx"), "0" * 64)
    assert "small.onnx" in caught.value.why
    with pytest.raises(PlanError, match="another model"):
        plan_file.refuse_other(path, "0" * 64, path.with_name("small.onnx"), stored)
    path.write_text(path.read_text().replace('"keep": [', '"keep": [{}, '))
    with pytest.raises(PlanError, match="damaged"):
        plan_file.refuse_other(path, digest, path.with_name("small.onnx"), stored)
