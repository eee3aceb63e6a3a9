"""Fill the results table of both READMEs from benchmarks/results/*.json; no number there is typed by hand.

usage: python docs/build_results.py [--check]
"""  # noqa: INP001 docs/ is no package

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = {"en": ROOT / "README.md", "zh": ROOT / "README.zh.md"}
BLOCK = re.compile(r"(<!-- results:.*?-->\n).*?(<!-- /results -->)", re.DOTALL)
Facts = Mapping[str, Any]
ELSEWHERE = ("scores", "race", "strategies", "run_cifar10-explored")
"""Results whose table stands in the guide or in a decision, and not in the READMEs."""

OURS = ("command", "then_warm", "full_ours", "last_k_cached")
TIMES = ("seconds", "seconds/inner_seconds", "step_seconds", "epoch_seconds")
"""Variants that are ours; the other side of a ratio is the peer."""
LABELS = {
    "en": {
        "head": ("What was measured", "warmstart", "peer in the same run", "ratio or interval", "n"),
        "command": "the whole command, cold cache",
        "then_warm": "the command again, warm cache, another seed",
        "textbook": "textbook loop, {epochs} epochs, {timed} of them timed",
        "alone": ", its start-up not counted",
        "eager": "one bare pass, eager PyTorch",
        "onnxruntime": "one bare pass, ONNX Runtime",
        "head_only": "head-only fine-tune, {backbone}, {size} px, {train:,} pictures of CIFAR-10",
        "strategies_speed": "{backbone}, {size} px",
        "full_ours": "a step of full fine-tuning",
        "full_hand": "hand-written loop",
        "full_hand_channels_last": "hand-written loop in channels-last",
        "last_k_cached": "an epoch of last_k (k = {k}) over the cached prefix",
        "last_k_pixels": "the same without the cache",
        "kills": "kill -9 at random moments, then the same command: same bytes",
        "damage": "checkpoint and cache files with a flipped bit or cut short: detected",
        "faster": "{:.3g} × faster ({:.3g} to {:.3g})",
        "slower": "{:.2f} × the time ({:.2f} to {:.2f})",
        "less": "{:.2f} × the memory ({:.2f} to {:.2f})",
        "accuracy": "its val accuracy",
        "range": "{:.3f} to {:.3f} over seeds",
        "planted": "near-copies planted in CIFAR-10 and found: {kind}",
        "exact": "exact copies planted in CIFAR-10 and found",
        "own": "CIFAR-10's own test pictures with a near-copy in train",
        "listed": "{} in the [published list](https://arxiv.org/abs/1902.00423)",
        "false": "test pictures falsely called near-copies of train",
        "coverage": "95 % intervals of accuracy that hold the truth",
        "nominal": "95 % wanted",
        "wins": "two equal models, the first said to be better",
        "between": "{:.1%} to {:.1%} over {} settings",
        "up_to": "at most {:.1%}",
        "expected": "2.5 % expected",
        "simulations": "{:,} each",
        "none": "No measurements yet: `make bench`.",
        "machine": "{processor}, {cpus} processors; torch {torch}; {count} files of "
        "[benchmarks/results](benchmarks/results). [How they are made](docs/guide/numbers.md).",
        "interval": "{} to {}",
    },
    "zh": {
        "head": ("测量内容", "warmstart", "同一次运行中的对照", "比值或区间", "n"),
        "command": "整条命令，冷缓存",
        "then_warm": "再次运行，热缓存，换随机种子",
        "textbook": "教科书循环，{epochs} 个 epoch（实测 {timed} 个）",
        "alone": "（不计其启动时间）",
        "eager": "一次纯前向，PyTorch eager",
        "onnxruntime": "一次纯前向，ONNX Runtime",
        "head_only": "只训练头部，{backbone}，{size} px，CIFAR-10 的 {train:,} 张图片",
        "strategies_speed": "{backbone}，{size} px",
        "full_ours": "全量微调的一步",
        "full_hand": "手写循环",
        "full_hand_channels_last": "channels-last 格式的手写循环",
        "last_k_cached": "在缓存前缀上跑一个 epoch 的 last_k（k = {k}）",
        "last_k_pixels": "同样的训练，不用缓存",
        "damage": "检查点与缓存文件翻转一位或被截断：被发现",
        "kills": "随机时刻 kill -9 后重复同一命令：结果逐字节相同",
        "faster": "快 {:.3g} 倍（{:.3g} 至 {:.3g}）",
        "slower": "耗时的 {:.2f} 倍（{:.2f} 至 {:.2f}）",
        "less": "内存的 {:.2f} 倍（{:.2f} 至 {:.2f}）",
        "accuracy": "上述命令的 val 准确率",
        "range": "各种子 {:.3f} 至 {:.3f}",
        "planted": "植入 CIFAR-10 的近似副本的检出率：{kind}",
        "exact": "植入 CIFAR-10 的完全副本的检出率",
        "own": "CIFAR-10 自身的测试图片在 train 中有近似副本",
        "listed": "[公开列表](https://arxiv.org/abs/1902.00423)中为 {}",
        "false": "被误判为 train 近似副本的测试图片",
        "coverage": "准确率的 95 % 区间包含真值的比例",
        "nominal": "目标 95 %",
        "wins": "两个等价的模型，前者被判为更好的比例",
        "between": "{2} 种设定下 {0:.1%} 至 {1:.1%}",
        "up_to": "至多 {:.1%}",
        "expected": "期望 2.5 %",
        "simulations": "各 {:,}",
        "none": "尚无测量结果：`make bench`。",
        "machine": "{processor}，{cpus} 个处理器；torch {torch}；来自 [benchmarks/results](benchmarks/results) 的 "
        "{count} 个文件。[测量方法](docs/guide/numbers.md)。",
        "interval": "{} 至 {}",
    },
}
KINDS_ZH = {"jpeg": "重新编码", "resize": "缩放", "crop": "裁掉 5 %", "brightness": "亮度", "flip": "镜像"}


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    ours: str
    peer: str
    sure: str
    n: str


def main() -> int:
    """Write both blocks, or with `--check` say whether they are up to date."""
    stale = [path for path, text in pages().items() if path.read_text("utf-8") != text]
    for path in stale:
        if "--check" in sys.argv:
            sys.stderr.write(f"{path.name} is stale\n  fix: python docs/build_results.py\n")
        else:
            path.write_text(pages()[path], "utf-8")
    return int("--check" in sys.argv and bool(stale))


def pages() -> dict[Path, str]:
    """Return both READMEs with their blocks as the JSON files say now."""
    found = results()
    return {
        path: BLOCK.sub(lambda block, to=language: block[1] + table(found, to) + block[2], path.read_text("utf-8"))
        for language, path in PAGES.items()
    }


def results() -> dict[str, Facts]:
    """Read every result that belongs here, by name; notes of people (`*_judged.json`) are no results."""
    files = [path for path in sorted(RESULTS.glob("*.json")) if not path.stem.endswith("_judged")]
    files = [path for path in files if path.stem not in ELSEWHERE]
    return {path.stem: json.loads(path.read_text("utf-8")) for path in files}


def table(found: Mapping[str, Facts], language: str) -> str:
    """Draw the table in one language."""
    words = LABELS[language]
    order = sorted(found, key=lambda name: (name in OWN, name))  # comparisons with a peer first
    rows = [row for name in order for row in _rows(name, found[name], language)]
    if not rows:
        return f"{words['none']}\n"
    lines = [tuple(words["head"]), ("---",) * 5, *((row.what, row.ours, row.peer, row.sure, row.n) for row in rows)]
    facts = [one for one in found.values() if "environment" in one]
    machine = next((one["machine"] for one in facts if "machine" in one), {"processor": "?"})
    foot = str(words["machine"]).format(
        processor=machine["processor"],
        cpus=facts[0]["environment"]["cpus"],
        torch=facts[0]["environment"]["torch"],
        count=len(found),
    )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{foot}\n"


def _rows(name: str, facts: Facts, language: str) -> Iterator[Row]:
    """Yield the lines of one file: rows that it brings along, its ratios, or what its own function reads from it."""
    words = LABELS[language]
    for row in facts.get("readme", ()):
        what = row.get(f"what_{language}") or row["what"]
        sure = str(words["interval"]).format(row["low"], row["high"])
        yield Row(what, str(row["value"]), str(row.get("peer") or "–"), sure, str(row["n"]))
    if "ratios" in facts:
        yield from _ratios(facts, words)
    if own := OWN.get(name):
        yield from own(facts, language)


def _ratios(facts: Facts, words: Facts) -> Iterator[Row]:
    key = str(facts["benchmark"]).partition("-")[0]
    parameters = {"timed": facts["parameters"].get("epochs"), **facts["parameters"]}
    parameters["timed"] = parameters["timed"] or parameters.get("epochs")
    title = words.get(key, key).format(**parameters)
    for one in facts["ratios"]:
        if one["what"] not in (*TIMES, "peak_bytes"):
            continue
        ours = one["slow"] if one["slow"] in OURS and one["fast"] not in OURS else one["fast"]
        peer = one["fast"] if ours == one["slow"] else one["slow"]
        form = "less" if one["what"] == "peak_bytes" else "slower" if ours == one["slow"] else "faster"
        values = (one["median"], one["low"], one["high"])
        if form == "less" and ours == one["fast"]:
            values = (1 / one["median"], 1 / one["high"], 1 / one["low"])
        label = words.get(ours, ours).format(**parameters)
        own, other = (one["what"].split("/") * 2)[:2]
        mine, theirs = _median(facts, ours, own), _median(facts, peer, other)
        alone = words["alone"] if other == "inner_seconds" else ""
        against = f"{theirs}, {words.get(peer, peer).format(**parameters)}{alone}"
        yield Row(f"{title}: {label}", mine, against, words[form].format(*values), str(one["n"]))
    yield from _accuracies(facts, words, title, parameters)


def _accuracies(facts: Facts, words: Facts, title: str, parameters: Facts) -> Iterator[Row]:
    found = {
        name: [run["facts"]["accuracy"] for run in runs if "accuracy" in run["facts"]]
        for name, runs in facts["runs"].items()
    }
    ours, peer = found.get("command"), found.get("textbook")
    if ours and peer:
        theirs = f"{statistics.median(peer):.3f}, {words['textbook'].format(**parameters)}"
        sure = words["range"].format(min(ours), max(ours))
        yield Row(f"{title}: {words['accuracy']}", f"{statistics.median(ours):.3f}", theirs, sure, str(len(ours)))


def _median(facts: Facts, variant: str, what: str) -> str:
    runs = facts["runs"][variant]
    middle = statistics.median(run[what] if what in run else run["facts"][what] for run in runs)
    if what == "peak_bytes":
        return f"{middle / 2**20:,.0f} MiB"
    return f"{middle:,.1f} s" if middle >= 1 else f"{1000 * middle:,.0f} ms"


def _audit(facts: Facts, language: str) -> Iterator[Row]:
    words = LABELS[language]
    yield _share(words["exact"], facts["planted"]["exact"], words)
    for kind, found in facts["planted"]["features"].items():
        name = KINDS_ZH.get(kind, kind) if language == "zh" else kind
        yield _share(words["planted"].format(kind=name), found, words)
    own = facts["own"]["features"]
    published = words["listed"].format(own["of_the_published_list"]["n"])
    yield _share(words["own"], own["test_in_train"], words, published)
    yield _share(words["false"], facts["false_alarms"]["of_test_pictures"], words)


def _kills(facts: Facts, language: str) -> Iterator[Row]:
    yield _exact(LABELS[language]["kills"], facts["kills_resumed_equal"], facts["kills"], LABELS[language])


def _damage(facts: Facts, language: str) -> Iterator[Row]:
    told = facts["parameters"]
    yield _exact(LABELS[language]["damage"], told["detected"], told["damaged"], LABELS[language])


def _exact(what: str, hits: int, total: int, words: Facts) -> Row:
    from scipy.stats import binomtest

    interval = binomtest(hits, total).proportion_ci()
    share = {"value": hits / total, "hits": hits, "n": total, "interval": (interval.low, interval.high)}
    return _share(what, share, words)


def _share(what: str, found: Facts, words: Facts, peer: str = "–") -> Row:
    low, high = found["interval"]
    sure = words["interval"].format(f"{low:.2%}", f"{high:.2%}")
    return Row(what, f"{found['value']:.2%} ({found['hits']:,})", peer, sure, f"{found['n']:,}")


def _coverage(facts: Facts, language: str) -> Iterator[Row]:
    words = LABELS[language]
    n = words["simulations"].format(facts["simulations"])
    held = [row["intervals"]["accuracy"]["covered"] for row in facts["rows"] if "accuracy" in row["intervals"]]
    middle = f"{statistics.median(held):.1%}"
    yield Row(words["coverage"], middle, words["nominal"], words["between"].format(min(held), max(held), len(held)), n)
    wins = [pair["a"] for row in facts["rows"] for pair in row["false_wins"].values()]
    most = words["up_to"].format(max(wins))
    yield Row(words["wins"], f"{statistics.median(wins):.1%}", words["expected"], most, n)


OWN: dict[str, Callable[[Facts, str], Iterator[Row]]] = {
    "audit_cifar10": _audit,
    "coverage": _coverage,
    "damage": _damage,
    "kills": _kills,
}

if __name__ == "__main__":
    sys.exit(main())
