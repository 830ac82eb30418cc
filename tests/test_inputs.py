"""Wrong inputs of new users: each is rejected before anything is written, with an error that says the fix."""

import re
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import yaml

from swiftvideo_fast import cli, config
from swiftvideo_fast.adversary import backbones
from swiftvideo_fast.config import arguments
from swiftvideo_fast.train import preflight, recipe, run_folder

ROOT = Path(__file__).parents[1]
TEACHER, CODEC = "{inputs}/teacher.safetensors", "{inputs}/codec.safetensors"
SAMPLE = f"sample {{config}} --weights {TEACHER} "
ENCODE = f"encode {TEACHER} --out {{tmp}}/e --family toy --codec {CODEC} "
LINES = [                       # a command; a pattern of its error
    # the line itself
    ("", "required: COMMAND; swiftvideo --help lists them\nexample: swiftvideo train"),
    ("trian x.yaml", "invalid choice: 'trian'.*perhaps 'train'"),
    ("train", "required: config\nexample: swiftvideo train configs/demo/ccd.yaml run.steps=400"),
    ("train {config} {config}", "override '.*yaml'; want one config"),
    ("train {config} run.steps 5", "override 'run.steps'; want key.subkey=value"),
    ("train {config} --run.steps=5", "unknown option --run.steps=5; perhaps run.steps=5\nexample"),
    ("train {config} --dry-run run.steps", "unknown argument run.steps; perhaps run.steps=VALUE"),
    ("train {config} --dryrun", "unknown option --dryrun; perhaps --dry-run"),
    ("train {config} --verbose", "unknown option --verbose; --help lists the known ones"),
    ("export {config} out --diffusers", "unknown option --diffusers; perhaps --to diffusers"),
    ("export {config} out --to comfyui", "perhaps 'comfyui-lora'"),
    ("runs a b", "runs: error: unknown argument b;"),
    ("sample --seed -1 x", "--seed: '-1'; want 0 or more"),
    # a config
    ("train {tmp}/empty.yaml", "empty.yaml: want sections .*, found an empty file"),
    ("train {tmp}/twice.yaml", "twice.yaml: not YAML: the key 'steps' is given twice at line"),
    ("train {tmp}", "not readable .Is a directory"),
    ("train {config} RUN.STEPS=5", "unknown key RUN.STEPS; the nearest known one is run.steps"),
    ("train {config} objective.name=flow", "unknown key objective.c.* of flow; .* objective.drop_text"),
    ("train {config} objective=flow", "want a section with name: flow, objective={name: flow}"),
    ("train {config} run.steps=1e20", "run.steps is 100000000000000000000; want .*at most a billion"),
    ("train {config} run.steps=1e-3", "run.steps is '1e-3' .str.; want int"),
    ("train {config} model.recompute=all", "model.recompute is 'all'; want one of"),
    ("train {config} objective.guidance=-3", "objective.guidance is -3.0; want 0 or more"),
    ("train {config} data.height=100000", "data.height is 100000; want 1 to 4,320 pixels"),
    ("train {config} da.crop=17", "da.crop is 17; want at most 16, the shorter side of a frame"),
    ("train {config} run.dir=~/run", "run.dir is ~/run; want a folder without"),
    ("train {config} run.dir=$HOME/run", "run.dir is .HOME/run; want a folder without ~ or ."),
    # files and folders
    ("train {config} model.weights={tmp}", "no config.json; want a Wan model folder"),
    ("train {config} model.codec={tmp}", "{tmp}: a folder; want a .safetensors file"),
    (f"train {{config}} model.codec={TEACHER}", "read as a PCA codec: does not fit"),
    (f"train {{config}} model.weights={CODEC}", "its header has no network sizes"),
    ("train {config} run.dir={config}", "yaml: a file; want a folder for run.dir"),
    ("train {config} run.dir=.", "run.dir is .; want a folder for this run alone, such as runs/ccd"),
    ("train {config} run.dir=/", "run.dir is /; want a folder for this run alone"),
    ("train {config} run.dir=/proc/x/run", "run.dir is /proc/x/run, which could not be written to"),
    ("runs {tmp}/none", "FOLDER is .*none; want a folder with runs"),
    ("runs {inputs}", "want a folder with runs; there is none in it"),
    # too large, or missing
    ("train {config} data.batch=1000000000", r"data.batch is .* at most \d+ clips a backward pass"),
    ("train {config} data.batch=9 engine.micro=2", "data.batch is 9; want a multiple of 2"),
    ("train {config} data.pool=1000000000", r"data.pool is 1000000000; want at most \d+: a crop takes .* GB"),
    ("train {config} run.wandb=x", "run.wandb needs wandb: pip install wandb"),
    ("train {config} sample.sampler=flowmap", "sample.sampler is flowmap; want euler or consistency"),
    ("train {config} engine.name=zero3 engine.sequence=3", "engine.sequence is 3; want a divisor of the 2"),
    ("train {config} da.crop=16 da.backbone=/none", "'/none', where no DINOv2 .*no such folder"),
    # other commands
    ("align {config}", "objective.name is ccd; want ta"),
    ("align {ta} --steps 2 4", "--steps is 2 4; want decreasing numbers, such as 8 4 2"),
    ("align {ta} --steps 8 8", "--steps is 8 8; want decreasing numbers"),
    ("align {ta} --steps 8 run.seed=1", "--steps is 8; want two or more"),
    ("align {ta} model.student=none --dry-run", "none: no such file or folder"),
    ("pairs {ta} --steps 4 8", "objective.steps is .4, 8.; want two positive numbers, the first larger"),
    ("pairs {ta} model.student=none --dry-run", "none: no such file or folder"),
    ("pairs {ta} objective.pairs=/proc/x --dry-run", "objective.pairs is /proc/x, which could not"),
    ("codec {config}", "codec.safetensors exists; name another file with model.codec=..., or --force"),
    ("codec {config} model.codec={tmp} --force", "model.codec is {tmp}, a folder; want the name of a file"),
    ("codec {config} model.codec=/proc/x/y.safetensors", "model.codec is /proc/x, which could not be"),
    (f"{SAMPLE} --guidance nan", "--guidance: 'nan'; want a number, 0 or more"),
    (f"{SAMPLE} --guidance -3", "--guidance: '-3'; want a number, 0 or more"),
    (f"{SAMPLE} --steps 100000000000", "--steps: '100000000000'; want at most 10,000 sampling steps"),
    (f"{SAMPLE} --count 100000000", "--count: '100000000'; want at most 100,000 clips"),
    (f"{SAMPLE} --out {{config}}", "--out is .*, which could not be written to .* is a file"),
    (f"{SAMPLE} --image a.png", "a config, whose held-out first frames are sampled; --image"),
    (f"{SAMPLE} --out {{tmp}}/there --count 2", "clip-000.mp4 exists, and 1 more; name another --out"),
    (f"sample {TEACHER} run.seed=1 --image a.png", "the override is run.seed=1; want none without"),
    (f"sample {TEACHER} --prompt a=b", "want --image and --prompt, or --prompts"),
    (f"sample {TEACHER} --image a.png --out a.png", "--out is a.png; want a name that ends in .mp4"),
    (f"sample {TEACHER} --image a.png --shift 0", "--shift: '0'; want a positive number"),
    ("export none a.safetensors", "none: no such file or folder; want a run"),
    (f"export {CODEC} {{tmp}}/a.safetensors", "its header has no network sizes; want the weights"),
    (f"export {TEACHER} {CODEC}", "codec.safetensors exists; choose another, or --force to replace it"),
    (f"export {TEACHER} {{tmp}} --to original --force", "{tmp} exists; choose another\n"),
    (f"export {TEACHER} {{tmp}}/a.safetensors --rank 4", "--rank is 4; want none for --to weights"),
    ("export {tmp}/lora.safetensors {tmp}/a --to diffusers", r"adapters \(LoRA\).*want the run"),
    (f"{ENCODE} --preset 1.3b", "model.preset is '1.3b'; want one of .'tiny'."),
    (f"{ENCODE}", "model.weights is None; want the network's, or model.preset"),
    (f"{ENCODE} --preset tiny", "teacher.safetensors: not an index .*; write one with `swiftvideo index`"),
    (f"{ENCODE} --device gpu", "--device: 'gpu'; want cpu or cuda"),
    (f"{ENCODE} --size 0x0", "--size: '0x0'; want WIDTHxHEIGHT"),
    (f"{ENCODE} --rate nan", "--rate: 'nan'; want a positive number"),
    ("index {tmp} --captions a.csv --out first.png", "--out is first.png; want a name that ends in .parquet"),
    (ENCODE.replace(TEACHER, 'none.parquet') + "--preset tiny", "none.parquet: no such file; write an index"),
    ("index {tmp} --captions a.csv --out i --workers 0", "--workers: '0'; want a positive number"),
    ("plan --preset wan-1.3b --gpus 8", "invalid choice: 'wan-1.3b' .*; perhaps '1.3b'"),
    ("plan --preset 14b --gpus 8 --recipe", "--preset is 14b; want 1.3b"),
    ("demo --dir /proc/x", "--dir is /proc/x, which could not be written"),
]
DRY = [line for line in LINES if line[0].startswith("train {config} ") and "--" not in line[0]]


@pytest.fixture(scope="module")
def place(inputs, tmp_path_factory) -> dict[str, Path]:
    """Returns the files that LINES refer to; none may change."""
    tmp = tmp_path_factory.mktemp("tmp")
    for name in ("ccd", "ta"):
        tree = config.to_dict(tiny.config(inputs, name, run=str(tmp / "run")))
        (tmp / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    (tmp / "empty.yaml").write_text("")
    (tmp / "twice.yaml").write_text("run: {steps: 1, steps: 2}\n")
    (tmp / "there").mkdir()
    for i in range(2):
        (tmp / f"there/clip-00{i}.mp4").write_bytes(b"a clip")
    from safetensors.torch import save_file
    from torch import zeros

    save_file({"diffusion_model.blocks.0.ffn.0.lora_A.weight": zeros(1)}, tmp / "lora.safetensors")
    return {"inputs": inputs, "tmp": tmp, "config": tmp / "ccd.yaml", "ta": tmp / "ta.yaml"}


def said(line: str, place: dict, capsys) -> str:
    """Returns a rejected command's stderr; checks that it writes no stdout, traceback or file."""
    before = sorted(f for name in ("tmp", "inputs") for f in place[name].rglob("*"))
    try:
        code = cli.main([word.format(**place) for word in line.split()], tiny.TABLES)
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, "") and "Traceback" not in err
    assert sorted(f for name in ("tmp", "inputs") for f in place[name].rglob("*")) == before
    return err


@pytest.mark.parametrize("line, want", LINES, ids=[line for line, _ in LINES])
def test_a_wrong_input_is_refused_in_words_that_mend_it(line, want, place, capsys):
    err = said(line, place, capsys)
    assert re.search(want.format(**place) if "{tmp}" in want else want, err, re.DOTALL), err
    if "error: " not in err:
        assert err.startswith(f"swiftvideo {line.split()[0]}: ") and err.count("\n") == 1


@pytest.mark.parametrize("line", [line for line, _ in DRY])
def test_a_dry_run_refuses_what_the_run_would(line, place, capsys):
    assert said(f"{line} --dry-run", place, capsys) == said(line, place, capsys)


def test_overrides_may_stand_anywhere(place, capsys):
    words = ["train", "--dry-run", "run.steps=7", str(place["config"]), "--resume", "auto", "optim.lr=0.5"]
    assert cli.main(words, tiny.TABLES) == 0
    assert re.search("  steps: 7\n.*  lr: 0.5\n", capsys.readouterr().out, re.DOTALL)
    asked = cli.parser().parse_args(["align", "--steps", "8", "4", "a.yaml", "run.seed=1", "da="])
    assert (asked.steps, asked.config, asked.overrides) == ([8, 4], "a.yaml", ["run.seed=1", "da="])
    asked = cli.parser().parse_args(["sample", "m", "--prompt", "a=b", "run.dir=a=b", "--out", "c=d"])
    assert (asked.prompt, str(asked.out), asked.overrides) == ("a=b", "c=d", ["run.dir=a=b"])


def test_a_config_whose_name_has_an_equals_sign_is_a_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=1.yaml").write_text("")
    asked = cli.parser().parse_args(["train", "lr=1.yaml", "lr=2"])
    assert (asked.config, asked.overrides) == ("lr=1.yaml", ["lr=2"])


def test_force_replaces_what_is_there(place, capsys, tmp_path):
    words = ["sample", place["config"], "--weights", place["inputs"] / "teacher.safetensors", "--count", 1,
             "--steps", 1, "--out", tmp_path]
    (tmp_path / "clip-000.mp4").write_bytes(b"old")
    words = [str(word) for word in words]
    assert cli.main(words, tiny.TABLES) == 2 and cli.main([*words, "--force"], tiny.TABLES) == 0
    assert (tmp_path / "clip-000.mp4").stat().st_size > 100


# Warnings, interrupts, the hub.

def test_a_warning_is_one_line_without_a_line_of_source(place, capsys, tmp_path):
    def shown(kind: type) -> str:
        return warnings.formatwarning(kind("left out:\n a clip"), kind, "a.py", 3, "x = 1")

    lines = []

    class Short(tiny.NoiseCrops):
        footage = staticmethod(lambda height: lines.append(shown(UserWarning)) or tiny.clips())

    tables = replace(tiny.TABLES, sources=recipe.by_name(Short))
    assert cli.main(["train", str(place["config"]), f"run.dir={tmp_path}/run", "run.steps=1"], tables) == 0
    assert set(lines) == {"swiftvideo train: left out: a clip\n"}
    assert shown(UserWarning).startswith("a.py:3: UserWarning"), "the usual format is put back"
    with cli.one_line_warnings("said"):
        assert shown(DeprecationWarning).startswith("a.py:3: DeprecationWarning")


def test_an_interrupt_while_the_package_is_imported_is_one_line():
    code = ("import sys, _thread\n"
            "class Find:\n"
            "    def find_spec(self, name, *_):\n"
            "        if name == 'torch': raise KeyboardInterrupt\n"
            "sys.meta_path.insert(0, Find())\n"
            "from swiftvideo_command import main; sys.exit(main())")
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                           check=False)
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGINT, "swiftvideo: interrupted\n")


def test_the_hub_is_asked_once_and_not_waited_for(monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    with pytest.raises(OSError, match="not in the cache, and HF_HUB_OFFLINE is set"):
        backbones._ask_hub("facebook/dinov2-small")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    tried = []

    class Absent:
        @staticmethod
        def from_pretrained(name, local_files_only=False):
            tried.append(local_files_only)
            raise OSError("not there")

    with pytest.raises(OSError, match="not in the cache, and http://127.0.0.1:9 is not reached: .*refused"):
        backbones._pretrained(Absent, "facebook/dinov2-small")
    assert tried == [True]


def test_out_of_memory_is_one_line_and_another_error_is_not_hidden(place, capsys, tmp_path):
    class Broken(tiny.NoiseCrops):
        why = "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"

        def draw(self, count, seed, position):
            raise RuntimeError(self.why)

    tables = replace(tiny.TABLES, sources=recipe.by_name(Broken))
    words = ["train", str(place["config"]), f"run.dir={tmp_path}/run"]
    assert cli.main(words, tables) == 2
    assert re.search("train: out of memory: .*; lower engine.micro", capsys.readouterr().err)
    Broken.why = "a defect"
    with pytest.raises(RuntimeError, match="a defect"):
        cli.main(words, tables)


def test_a_folder_that_takes_no_files_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(preflight.os, "access", lambda *_: False)
    with pytest.raises(OSError, match=f"run.dir is {tmp_path}/a, which could not .*no permission"):
        preflight.check_writable("run.dir", tmp_path / "a")


def test_a_dry_run_sees_a_run_that_is_held_and_one_that_is_longer(place, capsys, tmp_path):
    words = ["train", str(place["config"]), f"run.dir={tmp_path}/run"]
    assert cli.main([*words, "run.steps=2"], tiny.TABLES) == 0
    capsys.readouterr()
    assert cli.main([*words, "run.steps=1", "--dry-run"], tiny.TABLES) == 2
    assert "is at step 2; want run.steps of 2 or more (found 1)" in capsys.readouterr().err
    lock = run_folder.Lock(tiny.config(place["inputs"], "ccd", run=f"{tmp_path}/run"))
    lock.acquire()
    assert cli.main([*words, "run.steps=2", "--dry-run"], tiny.TABLES) == 2
    lock.close()
    assert "another process trains here" in capsys.readouterr().err


@pytest.mark.parametrize("of, text", [
    (arguments.natural, "1.5"), (arguments.positive, "0"), (arguments.weight, "inf"), (arguments.size, "8x"),
    (arguments.positive_number, "-1"), (arguments.positive_number, "inf"), (arguments.device, "cuda:x")])
def test_a_type_refuses_what_it_is_not(of, text):
    with pytest.raises(arguments.argparse.ArgumentTypeError, match=f"'{text}'"):
        of(text)
