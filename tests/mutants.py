"""Mutation tests of the kernels: each fault must fail the interpreter's tests.  Run manually:

    python tests/mutants.py                 all mutants, on a copy of the tree; exit status 1 if one survives
    python tests/mutants.py gate ccd_loss   those of some files
"""

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

from swiftvideo_fast import ops  # noqa: E402

KERNELS = "kernels/swiftvideo_kernels"
ATTENTION = ["tests/test_kernels_attention.py"]
TESTS = {                               # else the elementwise ones of its op and of all ops at once
    **dict.fromkeys(["blocks", "attention_jvp", "attention_tangent"], ATTENTION),
    "storage": ["tests/test_kernels.py"],
    **dict.fromkeys(["ccd_gradient", "ccd_loss"], ["tests/test_kernels.py", "-k", "ccd or longer or layout"]),
}
# {file: [(original, replacement of its first occurrence)]}.  An op's own mutants are in its test file.
OF_OPS = {name: importlib.import_module(f"test_{name}").MUTANTS for name in ops.OPS if name != "attention"}
MUTANTS = OF_OPS | {
    "storage": [
        ("x if x is None else x.contiguous()", "x"),
        ("if x is not None and x.dtype == torch.float64", "if False"),
        ("block_b = triton.next_power_of_2(C - block_a) if block_a < C else 0", "block_b = 0"),
        ("triton.next_power_of_2(C - block_a)", "triton.next_power_of_2(C - block_a) // 2"),
        ("mask & (row < N)[:, None]", "mask"),
        ("mask = col < C", "mask = col >= 0"),
        ("(first + tl.arange(0, BLOCK))[None, :]", "tl.arange(0, BLOCK)[None, :]"),
        ("    if b is not None:\n        total += tl.sum(b, 1)\n", ""),
        ("    if b is not None:\n        total += tl.sum(b * other_b, 1)\n", ""),
    ],
    "blocks": [
        ("ts = tl.dot(tq, k.T, input", "ts = tl.dot(q, k.T, input"),
        ("ts = tl.dot(q, tk.T, ts, input", "ts = tl.dot(q, tk.T, input"),
        ("ts = tl.dot(q, tk.T, ts, input", "ts = tl.dot(tq, tk.T, ts, input"),
        ("    elif tk is not None:\n        ts = tl.dot(q, tk.T, input_precision=\"tf32x3\")\n", ""),
        ("keep = (col < M)[None, :]", "keep = (col <= M)[None, :]"),
        ("keep = (col < M)[None, :]", "keep = (col >= 0)[None, :]"),
        ("(col[None, :] <= row[:, None])", "(col[None, :] < row[:, None])"),
        ("col = first + tl.arange(0, s.shape[1])", "col = tl.arange(0, s.shape[1])"),
        ("mask = (first + row < rows)[:, None]", "mask = (row < rows)[:, None]"),
        ("            mask = mask & (col < WIDTH)[None, :]", "            pass"),
        ("tl.cast(first, tl.int64) * stride", "tl.cast(first, tl.int64) * WIDTH"),
        ("return x.new_empty(*x.shape[:-1], width + -width % grid)[..., :width].copy_(x)", "return x"),
        ("return x, torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device).copy_(tx)",
         "return x, tx"),
        ("        x = x.contiguous()\n    return x, torch", "        pass\n    return x, torch"),
        ("if scale < 0:", "if False:"),
        ("wide = narrow.to(tl.float32)", "wide = x"),
        ("H, H // G, N, M, scale", "H, 1, N, M, scale"),
    ],
    "attention_jvp": [
        ("group = head // GROUP", "group = head % GROUP"),
        ("block = tl.num_programs(0) - 1 - block  ", "block = tl.num_programs(0) - block  "),
        ("token, lse_base = start_q, head * N + start_q", "token, lse_base = start_q, start_q"),
        ("start_k * k_row, start_k * v_row", "start_q * k_row, start_q * v_row"),
        ("M = (tl.load(cu_k_ptr + clip + 1) - start_k)", "M = (tl.load(cu_k_ptr + clip + 1))"),
        ("end = tl.minimum(M, first_row + BLOCK_M)", "end = tl.minimum(M, first_row)"),
        ("whole = tl.minimum(M, first_row) // BLOCK_N",
         "whole = tl.minimum(M, first_row + BLOCK_M) // BLOCK_N"),
        ("end, whole = M, M // BLOCK_N * BLOCK_N", "end, whole = M, M"),
        ("if first >= whole:", "if first > whole:"),
        ("tl.maximum(m, tl.max(s, 1) * (scale * LOG2E))", "tl.maximum(m, tl.max(s, 1) * LOG2E)"),
        ("alpha = tl.exp2(m - m_new)", "alpha = tl.exp2(m_new - m_new)"),
        ("l_rounded * alpha + tl.sum(p_used, 1)", "l_rounded * alpha + tl.sum(p, 1)"),
        ("l = l * alpha + tl.sum(p, 1)", "l = l + tl.sum(p, 1)"),
        ("p * (ts * scale), q", "p * ts, q"),
        ("r = r * alpha + tl", "r = r + tl"),
        ("tl.sum(h_used, 1)", "tl.sum(p * (ts * scale), 1)"),
        ("acc_o = acc_o * alpha[:, None]", "acc_o = acc_o"),
        ("acc_to = acc_to * alpha[:, None]", "acc_to = acc_to"),
        ("acc_to = tl.dot(h_rounded, v, acc_to", "acc_to = tl.dot(h_rounded, v, acc_o"),
        ("acc_to = tl.dot(p_rounded, tv, acc_to", "acc_to = tl.dot(p_rounded, v, acc_to"),
        ("acc_to = tl.dot(p_rounded, tv, acc_to", "acc_to = tl.dot(h_rounded, tv, acc_to"),
        ("(acc_to - (r * inverse)[:, None] * acc_o)", "acc_to"),
        ("(acc_to - (r * inverse)[:, None] * acc_o)", "(acc_to + (r * inverse)[:, None] * acc_o)"),
        ("tl.where(some, l_rounded, 1.0)", "l_rounded"),
        ("tl.log2(tl.where(some, l, 1.0))) / LOG2E", "tl.log2(tl.where(some, l, 1.0)))"),
        ("tl.log2(tl.where(some, l, 1.0))", "tl.log2(tl.where(some, l_rounded, 1.0))"),
        ("((token + row) * H + head)", "((token + row) * H)"),
        ("(row < N)[:, None] & (col < WIDTH)", "(row >= 0)[:, None] & (col < WIDTH)"),
        ("(row < N)[:, None] & (col < WIDTH)", "(row < N)[:, None] & (col >= 0)"),
        ("lse_ptr + lse_base + row", "lse_ptr + row"),
    ],
    "attention_tangent": [
        ("q_base = clip * q_clip + head * q_head", "q_base = head * q_head"),
        ("clip * k_clip + group * k_head, clip", "clip * k_clip + head * k_head, clip"),
        ("lse_ptr + (clip * H + head) * N + row", "lse_ptr + head * N + row"),
        ("row < N, 0.0) * LOG2E", "row < N, 0.0)"),
        ("whole = tl.minimum(M, first_row) // BLOCK_N",
         "whole = tl.minimum(M, first_row + BLOCK_M) // BLOCK_N"),
        ("if first >= whole:", "if first > whole:"),
        ("end, whole = M, M // BLOCK_N * BLOCK_N", "end, whole = M, M"),
        ("p * (ts * scale), q", "p * ts, q"),
        ("mu += tl.sum(h_used, 1)", "mu = tl.sum(h_used, 1)"),
        ("mu += tl.sum(h_used, 1)", "mu += tl.sum(p * (ts * scale), 1)"),
        ("acc = tl.dot(h_rounded, v, acc", "acc = tl.dot(p.to(q.dtype), v, acc"),
        ("            acc = tl.dot(p.to(q.dtype), tv, acc, input_precision=\"tf32x3\")", "            pass"),
        ("(acc - mu[:, None] * o)", "acc"),
        ("o_BNHD = o.transpose(1, 2).contiguous()", "o_BNHD = o.contiguous()"),
        ("mask = (row < N)[:, None] & (col < WIDTH)", "mask = (row >= 0)[:, None] & (col < WIDTH)"),
    ],
}


def survives(tree: Path, file: str, old: str, new: str) -> bool:
    """True if the file's tests pass with `new` in place of `old`."""
    source = tree / KERNELS / f"{file}.py"
    text = source.read_text()
    if old not in text:
        raise ValueError(f"{source} has no {old!r}: its mutant wants another place")
    source.write_text(text.replace(old, new, 1))
    try:
        chosen = TESTS.get(file, ["tests/test_kernels.py", "-k", f"{file} or missing or layout"])
        tests = subprocess.run([sys.executable, "-m", "pytest", "-qx", *chosen], cwd=tree,
                               env=os.environ | {"PYTHONPATH": str(tree)}, capture_output=True, text=True)
    finally:
        source.write_text(text)
    if tests.returncode > 1:            # negative: the mutant killed the process, which counts as detected
        raise RuntimeError(f"pytest ended with {tests.returncode}: {tests.stdout}{tests.stderr}")
    return tests.returncode == 0


def main(files: list[str]) -> int:
    survivors, count = [], 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "build"))
        for file in files or MUTANTS:
            for old, new in MUTANTS[file]:
                alive, count = survives(tree, file, old, new), count + 1
                print("SURVIVES" if alive else "killed", f"{file}: {old!r} -> {new!r}", flush=True)
                survivors += [(file, old)] * alive
    print(f"{count - len(survivors)} of {count} killed")
    return bool(survivors)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
