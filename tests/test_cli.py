"""The command line: every mistake is one line and exit code 2; what it prints; how it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import llf_ray.cluster.apart
import llf_ray.cluster.launch
import llf_ray.studies.compare
from llf_ray.cli import main
from llf_ray.config import SettingError
from llf_ray.journal import Journal, driver_stamp, read_run, update_run
from llf_ray.train.worker import Outcome
from tests.studies import driver
from tests.studies.driver import job_file

ROOT = Path(__file__).parents[1]
SEAL = 'config = replace(base, recipe=recipes["seal"])'.replace("replace", '__import__("dataclasses").replace')
COMPARISON = 'comparison = Comparison(name="cmp", base=base, arms=recipes)'


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """Each test in a folder of its own, its runs carried out in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(llf_ray.cluster.launch, "execute", driver.execute)


@pytest.fixture
def job(tmp_path):
    return job_file(tmp_path, SEAL)


@pytest.fixture
def comparison(tmp_path):
    return job_file(tmp_path, COMPARISON, "comparison.py")


def call(*words) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def refused(*words) -> str:
    """The one line that a mistake gives."""
    result = call(*words)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    (line,) = result.stderr.splitlines()
    assert line.startswith("llf-ray: ")
    assert "Traceback" not in result.output
    return line


# ---------------------------------------------------------------------------------------------------------- start-up


def test_help_is_quick_and_needs_no_torch():
    """A process of its own, since this one has imported everything."""
    code = (
        "import sys\n"
        "from llf_ray.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'ray', 'mlflow', 'deepspeed', 'timm', 'matplotlib', 'rich', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for command in ("show", "run", "resume", "compare", "runs", "watch", "cut", "sync", "version"):
        assert f"  {command} " in done.stdout


def test_version_names_what_it_stands_on():
    result = call("version")
    assert result.exit_code == 0
    assert result.output.splitlines()[0].startswith("llf_ray ")
    assert any(line.startswith("ray ") for line in result.output.splitlines())


# ---------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("settings", "fragments"),
    [
        (["optim.lrr=0.1"], ["unknown setting 'optim.lrr'", "did you mean 'optim.lr'"]),
        (["recipe.ascend_epochs=3"], ["did you mean 'recipe.ascent_epochs'"]),
        (["engine.batch=many"], ["engine.batch = 'many'", "a whole number"]),
        (["engine.precision=fp23"], ["engine.precision", "fp32", "did you mean 'fp32'"]),
        (["optim.lr=-1"], ["optim.lr = -1.0", "> 0"]),
        (["resources.workers=5"], ["batch = 12", "multiple of 5"]),
        (["recipe.ascent_epochs=9"], ["recipe.ascent_epochs = 9.0", "must be < epochs"]),
        (["recipe.threshold=bodi"], ["layer 'bodi' does not exist", "did you mean 'body'"]),
        (["recipe.threshold=stem"], ["llf-ray: recipe.threshold = 'stem': group 'early' matches no parameter"]),
        (["recipe.threshold=9"], ["layer 9 does not exist", "3 convolution and linear layers"]),
        (["engine.batch=4800"], ["less than one batch of 4800"]),
        (["optim=5"], ["optim is a group of settings"]),
        (["optim.lr"], ["'optim.lr'", "key=value"]),
        (["optim.lr=1", "optim.lr=2"], ["optim.lr is set twice"]),
        (["name=a/b"], ["name = 'a/b'", "folder"]),
    ],
)
@pytest.mark.parametrize("command", ["show", "run"])
def test_a_wrong_setting_is_one_line(command, settings, fragments, job):
    line = refused(command, job, *settings)
    assert all(fragment in line for fragment in fragments), line
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("config = 1", ["config = 1: must be a RunConfig"]),
        ("x = 1", ["this file has neither"]),
        (f"config = base\n{COMPARISON}", ["this file has both"]),
        ("raise RuntimeError('no such luck')", ["job.py:27 cannot be read: RuntimeError: no such luck"]),
        ("config = (", ["cannot be read: SyntaxError"]),
        ("import no_such_module", ["ModuleNotFoundError"]),
        ("config = RunConfig(name='x', task=Toy(), recipe=Long(), optim=Optim(lr=-1))", ["job.py:27: lr = -1"]),
        (
            "config = RunConfig(name='x', task=Toy(), recipe=Long(generation=2))",
            ["job.py:27", "did you mean 'generations'? (Long takes: generations, epochs, "],
        ),
        ("config = RunConfig(name='x', task=Toy())", ["TypeError", "recipe"]),
        ("config = RunConfig(name='x', task=Toy(), recipe=Long(), seed='a')", ["seed = 'a'", "a whole number"]),
    ],
)
def test_a_broken_job_file_is_one_line(text, fragments, tmp_path):
    line = refused("show", job_file(tmp_path, text))
    assert all(fragment in line for fragment in fragments), line


def test_a_study_that_is_ended_while_it_examines_says_how_to_go_on(tmp_path, monkeypatch):
    """A signal then ends the command at once: no training has an outcome that tells of it."""

    def map_apart(function, items, resources, *, on_signal, **rest):
        on_signal(signal.SIGTERM)
        raise KeyboardInterrupt

    monkeypatch.setattr(
        llf_ray.cluster.apart,
        "execute_apart",
        lambda runs, **rest: [Outcome(state="finished", step=1, message="")] * len(runs),
    )
    monkeypatch.setattr(llf_ray.cluster.apart, "map_apart", map_apart)
    result = call("study", "language", "--size", "quick", "--folder", tmp_path)
    assert result.exit_code == 128 + signal.SIGTERM, result.output
    log = tmp_path.resolve() / "language-quick" / "driver.log"
    assert result.output.endswith(f"stopped: go on with the same command\nlog: {log}\n")


def test_a_missing_job_names_its_neighbours(job):
    assert f"there are: {job.name}" in refused("run", job.with_name("jop.py"))


def test_run_and_compare_say_which_of_them_a_job_is_for(job, comparison):
    assert f"use `llf-ray compare {comparison}`" in refused("run", comparison)
    assert f"use `llf-ray run {job}`" in refused("compare", job)


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["--arms", "long,seel"], ["arm 'seel' does not exist", "did you mean 'seal'"]),
        (["--arms", "long,long"], ["arm 'long' is named twice"]),
        (["--seeds", "0"], ["--seeds 0"]),
        (["seed=3"], ["a comparison has seeds"]),
        (
            ["recipe.threshold=head"],
            ["recipe.threshold: of the arms only seal and later_layer", "arms.seal.threshold=..."],
        ),
        (["recipe.treshold=head"], ["setting 'recipe.treshold' does not exist; did you mean 'recipe.threshold'?"]),
        (["arms.seal.generations=2"], ["unequal budgets", "long 24, restarts 24, seal 16, later_layer 24"]),
        (["arms.seal.threshold=bodi"], ["arm 'seal'", "did you mean 'body'"]),
        (["seeds=1,1"], ["each seed once"]),
        (["optim.lrr=3"], ["did you mean 'optim.lr'"]),
    ],
)
def test_a_wrong_comparison_is_one_line(words, fragments, comparison):
    line = refused("compare", comparison, *words)
    assert all(fragment in line for fragment in fragments), line
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["study", "forgetting", "--size", "smal"], ["size 'smal'", "did you mean 'small'?", "quick, small, paper"]),
        (["study", "language", "--size", "quik"], ["size 'quik'", "did you mean 'quick'?", "quick, small"]),
        (["study", "forgetting", "--seeds", "many"], ["--seeds", "'many'", "integer"]),
        (["study", "forgetting", "--sede", "3"], ["--sede", "--seeds"]),
        (["study", "forgeting"], ["'forgeting'", "'forgetting'"]),
        (["runz"], ["'runz'", "'runs'"]),
        (["--verbos"], ["--verbos"]),
        (["run"], ["JOB"]),
    ],
)
def test_a_wrong_word_of_the_command_is_one_line(words, fragments):
    line = refused(*words)
    assert all(fragment in line for fragment in fragments), line


def test_without_a_command_there_is_help():
    assert "Usage: " in call().output
    assert "forgetting" in call("study").output


@pytest.mark.parametrize("command", ["resume", "watch", "cut", "sync"])
def test_a_run_that_does_not_exist_gets_the_nearest_name(command, tmp_path):
    assert "runs holds no run" in refused(command, "tiny")
    hand_made(tmp_path / "runs" / "tiny", "finished")
    assert "did you mean 'tiny'?" in refused(command, "tinny")


def test_missing_data_are_a_users_mistake(tmp_path):
    text = (
        "from llf_ray.data import Augment, Folder\nfrom llf_ray.tasks import Classification, SmallResNet\n"
        'task = Classification(model=SmallResNet(), data=Folder(root="nowhere"), augment=Augment(size=32))\n'
        'config = RunConfig(name="x", task=task, recipe=Long())'
    )
    assert "nowhere does not exist" in refused("show", job_file(tmp_path, text))


# -------------------------------------------------------------------------------------------------------------- show


@pytest.mark.parametrize("recipe", ["long", "restarts", "seal", "later_layer"])
def test_show_prints_the_plan_and_draws_it(recipe, tmp_path):
    result = call(
        "show", job_file(tmp_path, f'config = __import__("dataclasses").replace(base, recipe=recipes["{recipe}"])')
    )
    assert result.exit_code == 0, result.output
    text = result.output
    assert "24 optimizer steps = 6 epochs" in text
    assert ("as generation 1" in text) == (recipe != "long")
    assert ("ascend x 0.5" in text) == (recipe == "seal")
    assert ("redraw later weights" in text) == (recipe == "later_layer")
    assert Path("tiny-plan.png").read_bytes().startswith(b"\x89PNG")
    assert text.rstrip().endswith("timeline: tiny-plan.png")
    assert not Path("runs").exists()


def test_show_all_leaves_nothing_out(job):
    short, whole = call("show", job).output, call("show", job, "--all", "--figure", "x/plan.png").output
    assert "as generation" not in whole
    assert [line.split()[:2] for line in whole.splitlines() if "ascent" in line and " - " in line] == [
        ["1", "ascent"],
        ["2", "ascent"],
    ]
    assert "body.1.bias" in whole
    assert "body.1.bias" not in short
    assert Path("x/plan.png").stat().st_size > 10_000


def test_show_of_a_comparison_puts_budgets_side_by_side(comparison):
    text = call("show", comparison).output
    assert "4 arms x seeds 0, 1 = 8 trainings, 192 optimizer steps" in text
    assert "equal budgets" in text
    assert "unequal budgets" in call("show", comparison, "arms.long.epochs=3").output
    assert Path("cmp-plan.png").exists()


def test_show_prices_a_plan(job):
    text = call("show", job, "--time", "resources.workers=2").output
    assert "measured here" in text
    assert "ms a step" in text
    assert [line.split()[0] for line in text.split("Memory of one worker")[1].splitlines()[2:6]] == ["0", "1", "2", "3"]


def test_show_tries_operations_on_saved_weights(tmp_path):
    job = job_file(tmp_path, 'config = __import__("dataclasses").replace(base, recipe=recipes["later_layer"])')
    assert call("run", job).exit_code == 0
    before = sorted(path for path in Path("runs/tiny").rglob("*"))
    for weights in ("runs/tiny", "runs/tiny/final/model.safetensors"):
        result = call("show", job, "--apply", weights)
        assert result.exit_code == 0, result.output
        (row,) = [line.split() for line in result.output.splitlines() if line.startswith("together")]
        assert row[1:3] == ["336", "336"]
    assert sorted(path for path in Path("runs/tiny").rglob("*")) == before
    assert "operation 2 does not exist; there are: 1 (redraw later weights)" in refused(
        "show", job, "--apply", "runs/tiny", "--operation", 2
    )
    assert "does not exist; did you mean runs/tiny?" in refused("show", job, "--apply", "runs/tini")
    assert "--operation 1 goes with --apply" in refused("show", job, "--operation", 1)
    Path("broken.safetensors").write_bytes(b"nothing")
    assert "cannot be read as a file of weights" in refused("show", job, "--apply", "broken.safetensors")
    assert "no operation to try" in refused("show", job_file(tmp_path, "config = base", "l.py"), "--apply", "runs/tiny")


# ---------------------------------------------------------------------------------------------------- run and resume


def test_a_run_ends_with_its_log_file_and_cannot_be_overwritten(job):
    result = call("run", job, "optim.lr=0.02")
    assert result.exit_code == 0, result.output
    folder = Path("runs/tiny").resolve()
    lines = result.output.splitlines()
    assert lines[-1] == f"log: {folder / 'driver.log'}"
    assert "finished after 24 steps" in result.output
    assert "test accuracy" in result.output
    assert (folder / "figures/plan.png").stat().st_size > 10_000
    about = read_run(folder)
    assert about["job"]["optim"]["lr"] == 0.02
    assert about["job"]["folder"] == str(folder.parent)
    line = refused("run", job)
    assert "name 'tiny' is in use" in line
    assert "llf-ray resume tiny" in line
    assert call("run", job, "--again").exit_code == 0
    assert read_run(folder.with_name("tiny-2"))["name"] == "tiny-2"
    assert "is finished" in refused("resume", "tiny")


def test_a_run_branches_from_a_generation_of_another(job):
    assert call("run", job).exit_code == 0
    result = call("run", job, "--from", "tiny@1", "name=more", "recipe.generations=4")
    assert result.exit_code == 0, result.output
    assert "finished after 32 steps" in result.output
    assert "has generations 0 to 2, not 7" in refused("run", job, "--from", "tiny@7", "name=x")
    assert "RUN@GENERATION" in refused("run", job, "--from", "tiny", "name=x")
    assert "does not exist" in refused("run", job, "--from", "tinny@1", "name=x")
    assert not Path("runs/x").exists()


def test_a_study_is_no_run_and_says_how_its_trainings_are_named(job):
    assert call("run", job, "--folder", "runs/quick").exit_code == 0
    Path("runs/quick/study.json").write_text("{}")
    line = refused("measure", "quick", "norms")
    assert line.endswith(
        "'quick' is a study: name one of its trainings with it, for example 'quick/tiny' (there are 1)"
    )
    assert "images" in refused("measure", "quick/tiny", "norms"), "this is found"


def test_one_folder_is_where_runs_go_and_are_found(job):
    assert call("run", job, "--folder", "elsewhere").exit_code == 0
    assert read_run(Path("elsewhere/tiny"))["name"] == "tiny"
    assert not Path("runs").exists()
    more = ("--from", "tiny@1", "name=more", "recipe.generations=4")
    assert f"does not exist in {Path('runs').resolve()}" in refused("run", job, *more)
    assert call("run", job, "--folder", "elsewhere", *more).exit_code == 0
    assert call("run", job, "folder=other", "--from", "elsewhere/tiny@1", "name=more", more[-1]).exit_code == 0
    assert "folder is set twice: 'a' and 'b'" in refused("run", job, "folder=a", "--folder", "b")


def test_a_comparison_goes_into_the_folder_that_is_named(comparison, monkeypatch):
    def begin(asked, **rest):
        raise SettingError(f"begun in {asked.base.folder}")

    monkeypatch.setattr(llf_ray.studies.compare, "begin", begin)
    assert refused("compare", comparison, "--folder", "elsewhere") == "llf-ray: begun in elsewhere"
    assert "folder is set twice" in refused("compare", comparison, "folder=a", "--folder", "b")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_says_how_to_go_on(number, code, job, monkeypatch):
    def stopped(runs, *, on_signal, **how):
        on_signal(number)
        driver.state(runs[0].folder, "stopped")
        return [Outcome(state="stopped", step=3, message="stopped at step 3 of 24; nothing is lost")]

    monkeypatch.setattr(llf_ray.cluster.launch, "execute", stopped)
    result = call("run", job)
    assert result.exit_code == code
    assert "go on with: llf-ray resume" in result.output
    monkeypatch.setattr(llf_ray.cluster.launch, "execute", driver.execute)
    assert "a resumed run keeps what it computes" in refused("resume", "tiny", "optim.lr=3")
    assert call("resume", "tiny", "engine.micro_batch=6").exit_code == 0


def test_a_finished_run_has_a_picture_of_its_training(job):
    assert call("run", job).exit_code == 0
    picture = Path("runs/tiny/figures/run.png")
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_a_failed_run_exits_with_1_and_its_message(job, monkeypatch):
    failed = Outcome(state="failed", step=3, message="the training loss is nan at step 4")
    monkeypatch.setattr(llf_ray.cluster.launch, "execute", lambda runs, **how: [failed])
    result = call("run", job)
    assert result.exit_code == 1
    assert "failed: the training loss is nan at step 4" in result.output
    assert result.output.splitlines()[-1].startswith("log: ")


def test_a_running_run_is_not_resumed(job):
    hand_made(Path("runs/tiny"), "running")
    assert "is running: watch it with `llf-ray watch tiny`" in refused("resume", "tiny")


def test_a_job_file_runs_as_a_script(job):
    job.write_text(
        job.read_text() + '\nif __name__ == "__main__":\n    from llf_ray.cli import main_job\n    main_job(__file__)\n'
    )
    done = subprocess.run(
        [sys.executable, str(job), "optim.lr=-2"],
        capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.strip() == "llf-ray: optim.lr = -2.0: must be > 0"


# ----------------------------------------------------------------------------------------------------------- compare


def test_a_comparison_trains_reports_and_is_carried_on(comparison, monkeypatch):
    def two_only(runs, **how):
        done = driver.execute(runs[:2], **how)
        return [*done, *(Outcome(state="stopped", step=0, message="stopped before its turn") for _ in runs[2:])]

    monkeypatch.setattr(llf_ray.cluster.launch, "execute", two_only)
    words = ("compare", comparison, "--arms", "long,later_layer", "optim.lr=0.1")
    first = call(*words)
    assert first.exit_code == 130
    assert "go on with: llf-ray resume" in first.output
    assert "not finished: long-seed1, later_layer-seed1" in first.output
    assert "name 'cmp' is in use" in refused(*words)
    monkeypatch.setattr(llf_ray.cluster.launch, "execute", driver.execute)
    second = call("resume", "cmp")
    assert second.exit_code == 0, second.output
    folder = Path("runs/cmp").resolve()
    assert second.output.splitlines()[-1] == f"log: {folder / 'driver.log'}"
    assert "test accuracy at the last step, 24 optimizer steps each" in second.output
    result = json.loads((folder / "tables/result.json").read_text())
    assert result["complete"]
    assert list(result["arms"]) == ["long", "later_layer"]
    assert read_run(folder)["state"] == "finished"
    assert read_run(folder / "long-seed1")["job"]["optim"]["lr"] == 0.1
    assert (folder / "figures/comparison.png").stat().st_size > 10_000
    assert (folder / "figures/plans.png").stat().st_size > 10_000
    assert "| long |" in (folder / "tables/table.md").read_text()
    again = call("resume", "cmp")  # nothing is left to train: the report alone
    assert again.exit_code == 0
    assert "optimizer steps each" in again.output
    assert "cut one of its trainings, for example cmp/long-seed0" in refused("cut", "cmp")


# ---------------------------------------------------------------------------------------------------- looking at runs


def hand_made(folder: Path, state: str) -> Path:
    """A run's folder as a driver would have left it in the middle of an ascent."""
    update_run(
        folder,
        name=folder.name,
        created=time.time(),
        state=state,
        driver=driver_stamp(),
        job={"tracking": {"off": True}},
    )
    with Journal(folder / "journal.jsonl") as journal:
        journal.append({"kind": "state", "time": time.time(), "state": "running", "message": ""})
        phase = {
            "kind": "phase",
            "step": 8,
            "index": 1,
            "name": "ascent",
            "generation": 1,
            "generations": 3,
            "stop": 12,
            "total": 24,
        }
        journal.append({**phase, "time": time.time(), "directions": {"early": -0.5, "rest": 1.0}})
        journal.append({"kind": "metrics", "step": 9, "time": time.time(), "values": {"train/loss": 1.5}})
        if state != "running":
            journal.append({"kind": "state", "time": time.time(), "state": state, "message": ""})
    return folder


def test_runs_lists_what_there_is(tmp_path):
    assert "no runs in runs" in call("runs").output
    hand_made(tmp_path / "runs" / "one", "running")
    hand_made(tmp_path / "elsewhere" / "two", "stopped")
    assert "one" in call("runs").output
    listed = call("runs", "--folder", "elsewhere").output
    assert "two" in listed
    assert "stopped" in listed


def test_watch_shows_where_a_run_stands(tmp_path):
    folder = hand_made(tmp_path / "runs" / "one", "running")
    for name in ("one", folder):
        shown = call("watch", name, "--once")
        assert shown.exit_code == 0
        assert "ascent" in shown.output
        assert "9/24" in shown.output


def test_cut_asks_for_the_end_of_the_present_phase(tmp_path):
    folder = hand_made(tmp_path / "runs" / "one", "running")
    result = call("cut", "one")
    assert result.exit_code == 0
    assert "phase 'ascent' of generation 1" in result.output
    assert json.loads((folder / "cut.request").read_text())["phase"] == 1
    hand_made(tmp_path / "runs" / "two", "stopped")
    assert "run 'two' is stopped: only a running run has a phase to cut" in refused("cut", "two")


def test_a_run_inside_a_comparison_is_found_by_its_own_name(tmp_path):
    hand_made(tmp_path / "runs" / "cmp" / "long-seed0", "running")
    assert call("watch", "long-seed0", "--once").exit_code == 0
    hand_made(tmp_path / "runs" / "other" / "long-seed0", "running")
    assert "may be cmp/long-seed0 or other/long-seed0" in refused("watch", "long-seed0")
