"""Faults put into the kernels one at a time: the interpreter's tests must see each.  By hand:

    python tests/mutants.py                 all of them, on a copy of the tree; exit code 1 if one survives
    python tests/mutants.py gate ccd_loss   those of some files
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
KERNELS = "kernels/swiftvideo_kernels"
ATTENTION = ["tests/test_kernels_attention.py"]
TESTS = {                               # else the elementwise ones of its op and of all ops at once
    **dict.fromkeys(["blocks", "attention_jvp", "attention_tangent"], ATTENTION),
    "storage": ["tests/test_kernels.py"],
    **dict.fromkeys(["ccd_gradient", "ccd_loss"], ["tests/test_kernels.py", "-k", "ccd or longer or layout"]),
}
MUTANTS = {                             # file: what is there, what takes its place (the first time it occurs)
    "ccd_gradient": [
        ("g = v - f - rt * df", "g = v - f"),
        ("g = v - f - rt * df", "g = v - f + rt * df"),
        ("g = v - f - rt * df", "g = v - rt * df"),
        ("rt = r * tl.load(t_ptr + clip)", "rt = r * tl.load(t_ptr)"),
        ("rt = r * tl.load(t_ptr + clip)", "rt = tl.load(t_ptr + clip)"),
        ("at, mask = clip * D + col, col < D", "at, mask = clip * D + col, col <= D"),
        ("at, mask = clip * D + col, col < D", "at, mask = col, col < D"),
        ("range(part * BLOCK, D, parts * BLOCK)", "range(part * BLOCK, parts * BLOCK, parts * BLOCK)"),
        ("square += g * g", "square = g * g"),
        ("        square += g * g\n        if CLAMP:\n            g = tl.minimum(tl.maximum(g, -1.0), 1.0)\n",
         "        if CLAMP:\n            g = tl.clamp(g, -1.0, 1.0)\n        square += g * g\n"),
        ("tl.minimum(tl.maximum(g, -1.0), 1.0)", "tl.maximum(g, -1.0)"),
        ("square_ptr + clip * parts + part", "square_ptr + part"),
        ("v, F, dF, t.contiguous()", "v, F, dF, t"),
        ("D ** -0.5", "1 / D"),
        ('1.0 if norm == "l2"', '1.0 if norm == "rms"'),
        ("(unit * size + c)", "(unit * size)"),
        ("if part == 0:", "if part == 1:"),
        ("square_ptr + clip * parts + i", "square_ptr + i"),
        ("at, mask = clip * D + col, col < D\n        tl.store", "at, mask = col, col < D\n        tl.store"),
        ("v, F, dF = contiguous", "_, F, dF = contiguous"),
    ],
    "ccd_loss": [
        ("residual = student - f - ", "residual = student - f + "),
        ("residual = student - f - ", "residual = student - "),
        ("square += residual * residual", "square += residual"),
        ("square += residual * residual", "square = residual * residual"),
        ("torch.empty_like(F), partial_sums", "torch.empty_like(F, dtype=torch.float16), partial_sums"),
        ("F_student, F, g = contiguous", "F_student, F, _ = contiguous"),
        ("at, mask = clip * D + col, col < D", "at, mask = col, col < D"),
        ("square_ptr + clip * parts + part", "square_ptr + part"),
    ],
    "gelu": [
        ("(1 + 0.044715 * square)", "1"),
        ("(1 + 0.044715", "(1 + 0.04471"),
        ("1.5957691216057308", "1.5958"),
        ("(s + slope", "(slope"),
        ("(1 + 0.134145 * square)", "1"),
        ("tl.abs(two_u)", "two_u"),
        ("e * larger", "1 - larger"),
        ("tl.where(x > 0, larger, smaller)", "larger"),
        ("(larger * smaller)", "larger"),
        ("mask = at < numel", "mask = at < numel - 1"),
        ("x, tx = contiguous", "x, _ = contiguous"),
        ("(triton.cdiv(x.numel(), BLOCK),)", "(x.numel() // BLOCK + 0 ** (x.numel() // BLOCK),)"),
    ],
    "ema": [
        ("average = decay * average + rest * tl", "average = rest * average + decay * tl"),
        ("average = decay * average + rest * tl", "average = decay * average + tl"),
        ("tl.store(average_ptr + at, average, mask)", "pass"),
        ("        tl.store(copy_ptr + at, average, mask)", "        pass"),
        ("mask = at < numel", "mask = at < numel - 1"),
        ("zip(average, contiguous(\"ema_\", *master)", "zip(average, master"),
        ("tl.program_id(0).to(tl.int64) * BLOCK", "tl.program_id(0).to(tl.int64) * (BLOCK - 1)"),
    ],
    "gate": [
        ("+ g * y", "+ y"),
        ("            tz += tl.load(tx_ptr + at, mask, 0.0).to(tl.float32)", "            tz += 0"),
        ("tz += g * tl.load(ty_ptr", "tz += tl.load(ty_ptr"),
        ("tz += y * tl.load(tg_ptr", "tz += tl.load(tg_ptr"),
        ("tl.load(tg_ptr + clip * C + col", "tl.load(tg_ptr + col"),
        ("g = tl.load(g_ptr + clip * C + col", "g = tl.load(g_ptr + col"),
        ("at = (clip * N + row)[:, None]", "at = row[:, None]"),
        ("mask = (row < N)[:, None] & (col < C)[None, :]", "mask = (row < N)[:, None] & (col >= 0)[None, :]"),
        ("mask = (row < N)[:, None] & (col < C)[None, :]", "mask = (row >= 0)[:, None] & (col < C)[None, :]"),
        ("dg += dz * tl", "dg = dz * tl"),
        ("dg += dz * tl", "dg += tl"),
        ("tl.store(dy_ptr + at, g * dz, mask)", "tl.store(dy_ptr + at, dz, mask)"),
        ("(clip * tl.num_programs(0) + chunk) * C", "chunk * C"),
        ("tl.minimum(N, (chunk + 1) * CHUNK)", "N"),
        ("x, y, g = contiguous(\"gate\"", "_, y, g = contiguous(\"gate\""),
        ("dz, y, g = contiguous", "_, y, g = contiguous"),
    ],
    "modulate": [
        ("x - (tl.sum(x, 1) / C)[:, None]", "x"),
        ("centred = tl.where(real, x - (tl.sum(x, 1) / C)[:, None], 0.0)",
         "centred = x - (tl.sum(x, 1) / C)[:, None]"),
        ("/ C + eps", "/ C"),
        ("(u - mean_u - n * mean_nu)", "(u - n * mean_nu)"),
        ("(u - mean_u - n * mean_nu)", "(u - mean_u)"),
        ("rstd * (u", "(u"),
        ("ln_jacobian(tx, n, rstd, C, real) * gain", "ln_jacobian(tx, n, rstd, C, real)"),
        ("tl.where(real, rstd", "(rstd"),
        ("ty += n * tl.load(ts_ptr", "ty += tl.load(ts_ptr"),
        ("            ty += tl.load(tb_ptr + channel, mask, 0.0).to(tl.float32)", "            ty += 0"),
        ("channel = clip * C + tl", "channel = tl"),
        ("gain = 1 + tl.load(s_ptr + channel", "gain = tl.load(s_ptr + channel"),
        ("n * gain + b", "n * gain"),
        ("ln_jacobian(dy * gain, n", "ln_jacobian(dy, n"),
        ("ds += dy * n", "ds += dy"),
        ("db += dy", "db = dy"),
        ("tl.minimum(N, (chunk + 1) * CHUNK)", "N"),
        ("(clip * tl.num_programs(0) + chunk) * C", "chunk * C"),
        ("dy, x, s = contiguous", "_, x, s = contiguous"),
    ],
    "norm_rope": [
        ("rstd * (u - n * (tl.sum(n * u, 1) / C)[:, None])", "rstd * u"),
        ("rstd * (u - n * (tl.sum(n * u, 1) / C)[:, None])", "u - n * (tl.sum(n * u, 1) / C)[:, None]"),
        ("(pair % R)", "pair"),
        ("at = row[:, None] * R", "at = row[:, None] * (R + 1)"),
        ("a * cos - b * sin", "a * cos + b * sin"),
        ("a * sin + b * cos", "b * sin + a * cos"),
        ("/ C + eps", "/ C"),
        ("y = n * w", "y = n"),
        ("ty = rms_jacobian(tx, n, rstd, C) * w", "ty = rms_jacobian(tx, n, rstd, C)"),
        ("            ty = _turn(ty, cos, sin, ROWS, BLOCK_C)", "            ty += 0"),
        ("cos, -sin", "cos, sin"),
        ("rms_jacobian(dy * w, n", "rms_jacobian(dy, n"),
        ("dw += dy * n", "dw = dy * n"),
        ("dw.sum((0, 1))", "dw.sum(1)[0]"),
        ("(cos.float(), sin.float())", "(cos, sin)"),
        ("at = (clip * N + row)[:, None]", "at = row[:, None]"),
        ("tl.minimum(N, (chunk + 1) * CHUNK)", "N"),
    ],
    "storage": [
        ("x if x is None else x.contiguous()", "x"),
        ("if x is not None and x.dtype == torch.float64", "if False"),
        ("triton.next_power_of_2(C)\n    warps", "triton.next_power_of_2(C) // 2\n    warps"),
        ("mask & (row < N)[:, None]", "mask"),
        ("max(1, min(8, 1024 // block_c))", "max(1, 1024 // block_c)"),
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
    """Whether the file's tests pass with `new` in place of `old`."""
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
    if tests.returncode > 1:            # less than 0: a fault that the process died of, which was seen
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
                print("SURVIVES" if alive else "seen", f"{file}: {old!r} -> {new!r}", flush=True)
                survivors += [(file, old)] * alive
    print(f"{count - len(survivors)} of {count} seen")
    return bool(survivors)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
