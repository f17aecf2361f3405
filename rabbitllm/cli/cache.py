"""List, check or remove the layer stores on disk.

`cache check` and `cache rm` take names as `cache ls` prints them.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rabbitllm.checkpoint.inventory import StoreInfo

EXAMPLE = """\
  rabbitllm cache ls
  rabbitllm cache check
  rabbitllm cache rm Mixtral-8x7B-Instruct-v0.1-3f2a9c51d07be684"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-command's arguments."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    ls = actions.add_parser("ls", help="list the stores")
    check = actions.add_parser("check", help="read stores whole, in search of damage")
    check.add_argument("names", nargs="*", metavar="NAME", help="a store's name (all of them)")
    rm = actions.add_parser("rm", help="remove stores")
    rm.add_argument("names", nargs="*", metavar="NAME", help="a store's name")
    rm.add_argument("--all", action="store_true", help="remove every store")
    rm.add_argument(
        "--force", action="store_true", help="even one that holds a model's only weights"
    )
    for action, run in ((ls, _ls), (check, _check), (rm, _rm)):
        action.add_argument(
            "--store",
            metavar="FOLDER",
            help="where they lie (RABBITLLM_CACHE, or ~/.cache/rabbitllm)",
        )
        action.set_defaults(action=run)


def main(arguments: argparse.Namespace) -> int:
    """Runs the sub-command; returns its exit status."""
    from rabbitllm.checkpoint.naming import default_root

    root = Path(arguments.store).expanduser() if arguments.store else default_root()
    status: int = arguments.action(arguments, root)
    return status


def _ls(arguments: argparse.Namespace, root: Path) -> int:
    from rabbitllm.checkpoint.inventory import find_stores
    from rabbitllm.cli.tables import table
    from rabbitllm.utils.memory import format_size

    stores = find_stores(root)
    if not stores:
        print(f"No layer stores in {root}.")
        return 0
    rows = [
        {
            "name": store.folder.name,
            "size": format_size(store.nbytes),
            "dtype": ", ".join(store.dtypes + store.codecs) or "?",
            "state": "complete" if store.complete else "incomplete",
            "source": f"{store.source or '?'}{' (deleted: only copy)' if store.only_copy else ''}",
        }
        for store in stores
    ]
    print(table(rows))
    print(f"\n{format_size(sum(store.nbytes for store in stores))} in {root}")
    return 0


def _check(arguments: argparse.Namespace, root: Path) -> int:
    """Prints what is damaged, and the way out; 1 if anything is."""
    from rabbitllm.checkpoint.inventory import damaged

    stores = _by_name(root)
    asked = [_named(stores, name, root) for name in arguments.names or stores]
    found = [(store, file) for store in asked for file in damaged(store)]
    for store, file in found:
        remedy = (
            f"download {store.source} again, for its own weights were deleted"
            if store.only_copy
            else "delete it, and the next load or split makes it again"
        )
        print(f"{file} is damaged: {remedy}.")
    if not found:
        print(f"No damage in the layer stores in {root} ({len(asked)} read).")
    return int(bool(found))


def _rm(arguments: argparse.Namespace, root: Path) -> int:
    """Removes what is named, or nothing if one of the names is wrong."""
    from rabbitllm.checkpoint.inventory import check_removable, remove
    from rabbitllm.utils.memory import format_size

    stores = _by_name(root)
    names = list(stores) if arguments.all else arguments.names
    if not names and not arguments.all:
        raise ValueError("Name a store, or pass --all. `rabbitllm cache ls` lists them.")
    for name in names:
        store = _named(stores, name, root)
        if not arguments.force:
            check_removable(store)
    for name in names:
        remove(stores[name], arguments.force)
        print(f"Removed {name} ({format_size(stores[name].nbytes)})", file=sys.stderr)
    return 0


def _by_name(root: Path) -> "dict[str, StoreInfo]":
    from rabbitllm.checkpoint.inventory import find_stores

    return {store.folder.name: store for store in find_stores(root)}


def _named(stores: "dict[str, StoreInfo]", name: str, root: Path) -> "StoreInfo":
    if name not in stores:
        raise ValueError(f"No layer store {name} in {root}. `rabbitllm cache ls` lists them.")
    return stores[name]
