"""Keys and file names in published YAML files that this program does not have."""

from utils.config.load import OldNames

# Keys that no program reads, the published ones included: dotted path -> why. `*` is any one key. A key is dead only where
# nothing here declares it.
DEAD_KEYS = {
    "consider_metric": "left over from an earlier code base",
    "scheduler.kwargs.t_mul": "restarts of the cosine; there is one cycle",
    "scheduler.kwargs.decay_rate": "decay over restarts; there is one cycle",
    "scheduler.kwargs.cycle_mul": "restarts of the cosine; there is one cycle",
    "scheduler.kwargs.cycle_decay": "decay over restarts; there is one cycle",
    "scheduler.kwargs.cycle_limit": "restarts of the cosine; there is one cycle",
    "optimizer.part": "left over from an earlier code base",
    "model.type": "the published models have one type",
    "dataset.*.class_choice": "never read by the published readers",
}
# Data-set files that have another name in cfgs/dataset/.
DATASET_FILES = {
    "ScanObjectNN_hardest.yaml": "Scan_PB.yaml",
    "ScanObjectNN_objectbg.yaml": "Scan_OBJ-BG.yaml",
    "ScanObjectNN_objectonly.yaml": "Scan_OBJ.yaml",
}

OLD_NAMES = OldNames(frozenset(DEAD_KEYS), DATASET_FILES)
