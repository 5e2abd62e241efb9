"""The published data sets: where each lies below the data root, how many clouds it has, and where it is to be had.

Links and states of hosts are those of public threads of these projects; a checksum is given only where its publisher states it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from utils.errors import UserError, suggest

SCAN_PAGE = (
    "The files are given out after a form (terms of use): https://hkust-vgd.github.io/scanobjectnn/ leads to it and answers with a link to "
    "h5_files.zip. Copy main_split/ and main_split_nobg/ of that archive into {root}"
)
STANFORD = (
    "Its host, shapenet.cs.stanford.edu ({archive}), has refused connections since 2024, and its authors publish no mirror or "
    "checksum. Ask those who have it, or give the link of a copy that you trust: "
    "python -m datasets.prepare fetch {name} --url LINK_TO_THE_ZIP --sha256 HASH; its content belongs into {root}"
)
PAGE = "Follow https://github.com/Pang-Yatian/Point-MAE/blob/main/DATASET.md"


@dataclass(frozen=True)
class Layout:
    """One data set as published.

    Args:
        name: what users type; `also`: what else they may type.
        root: folder below the data root.
        config: keys of the reader, without subset; empty where no reader exists yet.
        counts: what is counted -> how many are published.
        tree: the files below `root`, for messages.
        source: where the files are to be had; {root} and {name} are filled in.
        landmarks: names in `root` that tell it from other folders of an archive.
    """

    name: str
    root: str
    tree: str
    source: str
    also: tuple[str, ...] = ()
    config: dict = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    landmarks: tuple[str, ...] = ()

    def folder(self, data_root: Path) -> Path:
        """Return the folder of the set below a data root."""
        return data_root / self.root

    def remedy(self, data_root: Path) -> str:
        """Return what to do where the set is missing."""
        return self.source.format(root=self.folder(data_root).as_posix() + "/", name=self.name)


def _meshes(meshes: str, to: str, flags: str = "--up z ") -> str:
    return (
        "make such clouds from the meshes at https://modelnet.cs.princeton.edu: "
        f"python -m datasets.prepare convert {meshes} {flags}--to {to} --out {{root}}"
    )


def _stanford(archive: str) -> str:
    return STANFORD.replace("{archive}", archive)


def _scan(name: str, also: tuple[str, ...], config: dict, clouds: tuple[int, int], files: str) -> Layout:
    folder = config["ROOT"].removeprefix("data/ScanObjectNN/")
    return Layout(
        name=name,
        also=also,
        root="ScanObjectNN",
        config=config,
        counts=dict(zip(("train", "test"), clouds, strict=True)),
        tree=f"{folder}/training_objectdataset{files}.h5  test_objectdataset{files}.h5    `data` (n, 2048, 3), `label` (n,)",
        source=SCAN_PAGE,
        landmarks=("main_split", "main_split_nobg"),
    )


LAYOUTS = [
    Layout(
        name="ShapeNet",
        also=("ShapeNet-55", "ShapeNet55-34"),
        root="ShapeNet55-34",
        config={"NAME": "ShapeNet"},
        counts={"train": 41952, "test": 10518},
        tree="ShapeNet-55/train.txt  test.txt            one file name <taxonomy>-<model>.npy a line\n"
        "shapenet_pc/<taxonomy>-<model>.npy         float array (8192, 3)",
        source="The clouds are shared for download in a browser, under the terms of ShapeNet: "
        "https://github.com/yuxumin/PoinTr/blob/master/DATASET.md, ShapeNet-55/34. Unpack them so that "
        "shapenet_pc/ is in {root}. The lists train.txt and test.txt are not in that archive: copy data/ShapeNet55-34/ShapeNet-55/ of "
        "https://github.com/Julie-tang00/Point-BERT there",
        landmarks=("ShapeNet-55", "shapenet_pc"),
    ),
    Layout(
        name="ShapeNetRender",
        root="ShapeNetRender",
        config={"NAME": "ShapeNetRender"},
        counts={"shapes": 43783},
        tree="ShapeNet/<synset>/<model>.ply                       2,048 points\n"
        "ShapeNetRendering/<synset>/<model>/rendering/*.png  pictures of one size, square; published are 24 of 137 pixels",
        source="The archives shapenet.tar.gz and shapenet_render.tar.gz are shared for download in a browser: "
        "https://github.com/MohamedAfham/CrossPoint, section Datasets. Unpack both into {root}. Or draw pictures of your own meshes: "
        "python -m datasets.prepare render MESHES --out {root}",
        landmarks=("ShapeNet", "ShapeNetRendering"),
    ),
    Layout(
        name="ModelNet",
        also=("ModelNet40", "modelnet40_normal_resampled"),
        root="ModelNet/modelnet40_normal_resampled",
        config={"NAME": "ModelNet"},
        counts={"train": 9843, "test": 2468},
        tree="modelnet40_shape_names.txt                 one class name a line\n"
        "modelnet40_train.txt  modelnet40_test.txt  one id a line, such as airplane_0001\n"
        "<class>/<id>.txt                           10,000 lines of 6 numbers, separated by commas\n"
        "modelnet40_{train,test}_8192pts_fps.dat    optional, replaces <class>/<id>.txt of its list",
        source=_stanford("modelnet40_normal_resampled.zip")
        + ". Or, with other points, "
        + _meshes("ModelNet40", "modelnet40_normal_resampled"),
        landmarks=("modelnet40_shape_names.txt",),
    ),
    Layout(
        name="ModelNet40_SVM",
        also=("modelnet40_ply_hdf5_2048",),
        root="modelnet40_ply_hdf5_2048",
        config={"NAME": "ModelNet40_SVM", "DATA_DIR": "data/modelnet40_ply_hdf5_2048"},
        counts={"train": 9840, "test": 2468},
        tree="ply_data_train*.h5  ply_data_test*.h5      `data` (n, 2048, 3), `label` (n, 1)\n"
        "shape_names.txt                            one class name a line",
        source=_stanford("modelnet40_ply_hdf5_2048.zip")
        + ". Or, with other points, "
        + _meshes("ModelNet40", "modelnet40_ply_hdf5"),
        landmarks=("ply_data_train0.h5", "ply_data_test0.h5"),
    ),
    Layout(
        name="ModelNet10",
        also=("modelnet10_hdf5_1024",),
        root="modelnet10_hdf5_1024",
        config={"NAME": "ModelNet10"},
        counts={"train": 3991, "test": 908},
        tree="ply_data_train*.h5  ply_data_test*.h5      `data` (n, 1024, 3), z up, `label` (n, 1)\n"
        "shape_names.txt                            one class name a line",
        source="Nobody publishes it in this layout: " + _meshes("ModelNet10", "modelnet40_ply_hdf5", "--points 1024 "),
        landmarks=("ply_data_train0.h5", "ply_data_test0.h5"),
    ),
    _scan(
        "Scan_OBJ-BG",
        ("OBJ-BG",),
        {"NAME": "ScanObjectNN", "ROOT": "data/ScanObjectNN/main_split", "SPLIT": "OBJ-BG"},
        (2309, 581),
        "",
    ),
    _scan(
        "Scan_OBJ",
        ("OBJ", "OBJ-ONLY"),
        {"NAME": "ScanObjectNN", "ROOT": "data/ScanObjectNN/main_split_nobg", "SPLIT": "OBJ"},
        (2309, 581),
        "",
    ),
    _scan(
        "Scan_PB",
        ("PB", "PB-T50-RS", "ScanObjectNN_hardest"),
        {"NAME": "ScanObjectNN_hardest", "ROOT": "data/ScanObjectNN/main_split", "SPLIT": "PB"},
        (11416, 2882),
        "_augmentedrot_scale75",
    ),
    Layout(
        name="ModelNetFewShot",
        also=("ModelNetFewshot",),
        root="ModelNetFewshot",
        config={"NAME": "ModelNetFewShot"},
        counts={"folds": 40},
        tree="{5,10}way_{10,20}shot/{0..9}.pkl           {'train': [...], 'test': [...]} of (points, label, original class)",
        source=f"{PAGE}, ModelNet few-shot, and unpack the four folders into {{root}}. Or draw folds of your own: "
        "python -m datasets.prepare few-shot --source ModelNet --way 5 --shot 10 --out {root} (and 10 ways, 20 shots)",
        landmarks=("5way_10shot", "5way10shot"),
    ),
    Layout(
        name="ShapeNetPart",
        also=("shapenetcore_partanno_segmentation_benchmark_v0_normal",),
        root="shapenetcore_partanno_segmentation_benchmark_v0_normal",
        config={"NAME": "ShapeNetPart"},
        counts={"train + val": 13998, "test": 2874},
        tree="synsetoffset2category.txt                  one category and its folder a line\n"
        "train_test_split/shuffled_{train,val,test}_file_list.json   a list of shape_data/<folder>/<id>\n"
        "<folder>/<id>.txt                          lines of 7 numbers: coordinates, normal, part",
        source=_stanford("shapenetcore_partanno_segmentation_benchmark_v0_normal.zip")
        + ". A copy that users have named: https://github.com/Pang-Yatian/Point-MAE/issues/56",
        landmarks=("synsetoffset2category.txt",),
    ),
    Layout(
        name="ScanNet",
        also=("ScanNetV2",),
        root="scannet",
        config={"NAME": "ScanNet"},
        counts={"train": 1201, "val": 312},
        tree="meta_data/scannetv2_train.txt  scannetv2_val.txt           one scene a line, such as scene0191_00\n"
        "scannet_train_detection_data/<scene>_vert.npy              float array (n, 6): coordinates and colours\n"
        "scannet_train_detection_data/<scene>_{ins,sem}_label.npy   (n,)\n"
        "scannet_train_detection_data/<scene>_bbox.npy              (k, 7): centre, size, class id",
        source="The scans are given out after a form (terms of use): http://www.scan-net.org. Prepare them with "
        "batch_load_scannet_data.py of https://github.com/facebookresearch/votenet (folder scannet), and copy its output and its lists "
        "into {root} as shown",
        landmarks=("scannet_train_detection_data", "meta_data"),
    ),
    Layout(
        name="ModelNet40-C",
        also=("ModelNet40_C", "modelnet40_c"),
        root="modelnet40_c",
        config={"NAME": "ModelNet40_C"},
        counts={"files": 75},
        tree="data_<corruption>_<1..5>.npy               float array (2468, points, 3), 15 corruptions\n"
        "label.npy                                  (2468,) or (2468, 1)",
        source="https://zenodo.org/records/6017834 (CC BY 4.0), modelnet40_c.zip: python -m datasets.prepare fetch ModelNet40-C; "
        "its content belongs into {root}",
        landmarks=("label.npy",),
    ),
    Layout(
        name="Folder",
        root="own",
        config={"NAME": "Folder"},
        tree="train/<class>/<cloud> and test/<class>/<cloud>, <class>/{train,test}/<cloud>, <class>/<cloud>, or <cloud> without classes",
        source="Put clouds or meshes (NPY, NPZ, TXT, XYZ, CSV, ASC, PTS, PLY, PCD, OFF, OBJ, STL, GLB) into {root} as shown",
    ),
    Layout(
        name="Synthetic", root="", config={"NAME": "Synthetic"}, tree="", source="It is built in and needs no files"
    ),
]
GROUPS = {"ScanObjectNN": ("Scan_OBJ-BG", "Scan_OBJ", "Scan_PB")}


def find(name: str) -> list[Layout]:
    """Return the layouts that a name means, in any case: one, or several where a name stands for a group.

    Raises:
        UserError: no data set has that name.
    """
    wanted = name.lower()
    for group, members in GROUPS.items():
        if wanted == group.lower():
            return [layout for layout in LAYOUTS if layout.name in members]
    found = [layout for layout in LAYOUTS if wanted in {known.lower() for known in (layout.name, *layout.also)}]
    if not found:
        raise UserError(f"{name}: is no data set; {suggest(name, _names())}")
    return found


def is_known(name: str) -> bool:
    """Say whether a name is that of a data set or a group of them."""
    return name.lower() in {known.lower() for known in _names()}


def _names() -> Iterator[str]:
    yield from GROUPS
    for layout in LAYOUTS:
        yield layout.name
        yield from layout.also
