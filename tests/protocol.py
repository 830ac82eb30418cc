"""Every interleaving of a Gluon kernel's partitions, from the operations that gluon_cpu.py traced.

    explore(logs) -> number of states reached; raises Fault

TMA loads land at any time and in any order.  A partition's products and TMA stores end in the order of issue,
as late as its next wait allows: ending sooner enables nothing.  An mbarrier is (parity of the running phase,
arrivals still wanted, bytes still wanted); `wait parity` passes once the phase of that parity has ended.
Checked in every reachable state:
    a product, a read or a store finds its slot whole, with the same load in it as in all other orders;
    no load is issued, nothing is written, to a slot that a product or store in flight reads or a load fills;
    no barrier gets more arrivals than it counts; where nothing moves, all partitions have ended.
The four warps of a partition count as one: the compiler puts a barrier of the four before each arrival, which
bench/hopper_report.py counts.  The memory model is not modelled.
"""

from collections.abc import Sequence

Log = Sequence[tuple]
WRITTEN = 1 << 30                               # in place of a load's number


class Fault(Exception):
    pass


def explore(logs: Sequence[Log]) -> int:
    counts = {}
    for log in logs:
        for op in log:
            if op[0] in ("wait", "expect", "arrive"):
                counts[op[1]] = op[-1]
            elif op[0] == "load":
                counts[op[2]] = op[4]
    index = {name: i for i, name in enumerate(sorted(counts))}
    count = [counts[name] for name in sorted(counts)]
    places = sorted({x for log in logs for op in log if op[0] in ("product", "load", "write", "read", "store")
                     for x in (op[1] if op[0] == "product" else [op[1]])})
    slot = {place: i for i, place in enumerate(places)}
    expected: dict = {}

    def moved(bars, b, arrivals, size):
        parity, wanted, left = bars[b]
        wanted, left = wanted - arrivals, left + size
        if wanted < 0:
            raise Fault(f"barrier {b}: more arrivals than it counts")
        now = (parity ^ 1, count[b], 0) if wanted == 0 == left else (parity, wanted, left)
        return bars[:b] + (now,) + bars[b + 1:]

    def held(content, place, at):
        """Checks that a read slot is complete and holds the same load as in all other orders."""
        load = content[slot[place]]
        if load is None or load < 0:
            raise Fault(f"{at} reads {place}, which is {'empty' if load is None else 'not yet loaded'}")
        if expected.setdefault((at, place), load) != load:
            raise Fault(f"{at} reads {place} with load {load}; in another order with {expected[at, place]}")

    def clear(flying, loading, place, what):
        if any(place in reads for queue in flying for reads in queue):
            raise Fault(f"{what} {place}, which a product or a store in flight reads")
        if any(place == logs[who][pc][1] for who, pc in loading):
            raise Fault(f"{what} {place}, which a load is filling")

    def ended(flying, queue, left):
        kept = flying[queue][max(0, len(flying[queue]) - left):]
        return flying[:queue] + (kept,) + flying[queue + 1:]

    # A state: program counters; products in flight by partition, then stores; loads in flight; barriers;
    # the load that each slot holds, by number: negative while it is under way.
    idle = tuple((0, n, 0) for n in count)
    start = (0,) * len(logs), ((),) * 2 * len(logs), (), idle, (None,) * len(places)
    seen, todo = {start}, [start]
    while todo:
        pcs, flying, loading, bars, content = todo.pop()
        after = []
        for who, log in enumerate(logs):
            if pcs[who] == len(log):
                continue
            op, pc = log[pcs[who]], pcs[who]
            on, fly, load, bar, full = pcs[:who] + (pc + 1,) + pcs[who + 1:], flying, loading, bars, content
            if op[0] == "wait" and bars[index[op[1]]][0] == op[2]:
                continue
            if op[0] == "expect":
                bar = moved(bars, index[op[1]], 1, op[2])
            elif op[0] == "arrive":
                bar = moved(bars, index[op[1]], 1, 0)
            elif op[0] == "load":
                clear(flying, loading, op[1], f"load {pc} is issued over")
                load = tuple(sorted((*loading, (who, pc))))
                full = content[:slot[op[1]]] + (-pc - 1,) + content[slot[op[1]] + 1:]
            elif op[0] == "product":
                for place in op[1]:
                    held(content, place, (who, pc))
                fly = flying[:who] + (flying[who] + (op[1],),) + flying[who + 1:]
            elif op[0] == "at most":
                fly = ended(flying, who, op[1])
            elif op[0] == "store":
                held(content, op[1], (who, pc))
                queue = len(logs) + who
                fly = flying[:queue] + (flying[queue] + (op[1:],),) + flying[queue + 1:]
            elif op[0] == "stored":
                fly = ended(flying, len(logs) + who, op[1])
            elif op[0] == "write":
                clear(flying, loading, op[1], f"{(who, pc)} writes over")
                full = content[:slot[op[1]]] + (WRITTEN,) + content[slot[op[1]] + 1:]
            elif op[0] == "read":
                held(content, op[1], (who, pc))
            after.append((on, fly, load, bar, full))
        for who, pc in loading:                                         # a load lands
            _, place, name, size, *_ = logs[who][pc]
            after.append((pcs, flying, tuple(x for x in loading if x != (who, pc)),
                          moved(bars, index[name], 0, -size),
                          content[:slot[place]] + (pc,) + content[slot[place] + 1:]))
        if not after and any(pc < len(log) for pc, log in zip(pcs, logs)):
            at = [log[pc] if pc < len(log) else "ended" for pc, log in zip(pcs, logs)]
            raise Fault(f"deadlock at {at}")
        if not after and any(flying):
            raise Fault("a partition ends with a product or a store in flight")
        for state in after:
            if state not in seen:
                seen.add(state)
                todo.append(state)
    return len(seen)
