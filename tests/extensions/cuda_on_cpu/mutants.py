"""Changes to the CUDA sources that a test of them must notice, and by what it should: a test of the test."""

from dataclasses import dataclass

from tests.extensions.cuda_on_cpu.build import Variant


@dataclass(frozen=True)
class Mutant:
    """One change.

    Attributes:
        name: what it does.
        file: the file that it changes, and `source`: the one that is built.
        old, new: the text.
        families: of cases that run the changed code.
        by: what notices it: "comparison" of results, the "runtime" of the emulator, or the "thread" or "address" sanitizer.
    """

    name: str
    file: str
    source: str
    old: str
    new: str
    families: tuple[str, ...]
    by: str

    def variant(self, name: str = "") -> Variant:
        """Return how it is built: for what should notice it, or as the named variant."""
        built = name or (self.by if self.by in ("thread", "address") else "plain")
        return Variant(built, files=(self.source,), edits=((self.file, self.old, self.new),))


MUTANTS = (
    Mutant("kNN: no __syncwarp after the buffer is filled", "neighbors.cu", "neighbors.cu",
           "waiting += __popc(voters);\n      __syncwarp();", "waiting += __popc(voters);\n", ("knn",), "thread"),
    Mutant("nearest: no barrier after the tile is loaded", "nearest.cuh", "neighbors.cu",
           ": T(NAN);\n    __syncthreads();", ": T(NAN);\n", ("three_nn",), "comparison"),
    Mutant("ball query: no barrier before the tile is overwritten", "neighbors.cu", "neighbors.cu",
           "if (!__syncthreads_or(found < k)) break;", "", ("ball_query",), "thread"),
    Mutant("auction: no barrier before a round is settled", "emd.cu", "emd.cu",
           "__syncthreads();\n    if (warp == 0) settle", "if (warp == 0) settle", ("emd",), "thread"),
    Mutant("auction: no __syncwarp before candidates are renewed", "emd.cu", "emd.cu",
           "__syncwarp();\n  return search", "return search", ("emd",), "thread"),
    Mutant("FPS: one half instead of two", "sampling.cu", "sampling.cu",
           "Farthest<T>* half = slots[step % 2];", "Farthest<T>* half = slots[0];", ("fps",), "thread"),
    Mutant("FPS: one half of a cluster instead of two", "sampling.cu", "sampling.cu",
           "memory.blocks[step % 2];", "memory.blocks[0];", ("fps",), "thread"),
    Mutant("FPS: a cluster does not meet before it writes", "sampling.cu", "sampling.cu",
           "cluster.sync();  // all blocks run", "// all blocks run", ("fps",), "runtime"),
    Mutant("gather backward: no barrier after the scan", "indexing.cu", "indexing.cu",
           "running += here;\n  }\n  __syncthreads();", "running += here;\n  }\n", ("gather",), "thread"),
    Mutant("gather backward: a shuffle by some lanes only", "indexing.cu", "indexing.cu",
           "const unsigned entry = shuffle(sorted[0], i);\n        if (c < flow.channels) sum",
           "if (c >= flow.channels) continue;\n        const unsigned entry = shuffle(sorted[0], i);\n        sum", ("gather",), "runtime"),
    Mutant("Chamfer loss: choosers are not cleared", "chamfer.cu", "chamfer.cu",
           "patches.choosers_of_a[lane] = patches.choosers_of_b[lane] = 0;", "", ("chamfer",), "comparison"),
    Mutant("Chamfer backward: threads leave before a barrier", "chamfer.cu", "chamfer.cu",
           "  T gx = 0, gy = 0, gz = 0, ox = 0", "  if (!real) return;\n  T gx = 0, gy = 0, gz = 0, ox = 0", ("chamfer",), "runtime"),
    Mutant("FPS: ties go to the last position", "sampling.cu", "sampling.cu",
           "(now == most && here < position)", "(now == most && here > position)", ("fps",), "comparison"),
    Mutant("auction: the last of equal bids wins", "emd.cu", "emd.cu",
           "(offer == bid && other < lane)", "(offer == bid && other > lane)", ("emd",), "comparison"),
    Mutant("Chamfer loss: the last of equally near points wins", "chamfer.cu", "chamfer.cu",
           "if (bits < best) best = bits, who = j;", "if (bits <= best) best = bits, who = j;", ("chamfer",), "comparison"),
    Mutant("kNN: the tile is a point too short", "neighbors.cu", "neighbors.cu",
           "__shared__ T tile[kTile * 3];\n  __shared__ Key<T> buffers", "__shared__ T tile[kTile * 3 - 3];\n  __shared__ Key<T> buffers",
           ("knn",), "address"),
)  # fmt: skip
