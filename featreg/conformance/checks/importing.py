"""What importing a backend does to a process, measured in one of its own."""

from __future__ import annotations

from featreg.conformance.checks.packaging import own_packages
from featreg.conformance.elsewhere import ask
from featreg.conformance.model import check
from featreg.conformance.subject import Subject

IMPORT = """
import importlib, json, sys
from importlib.machinery import PathFinder
from featreg.conformance.checks.state import snapshot

factory, *own = sys.argv[1:]
module, _, name = factory.partition(":")
state, depth, changed = snapshot(), 0, set()

def settle(blame):
    global state, depth
    depth += 1  # looking imports modules of torch's, too
    before, state = state, snapshot()
    depth -= 1
    if blame:
        changed.update(key for key, value in before.items() if state.get(key) != value)

class Watched:
    def __init__(self, loader):
        self.loader = loader

    def __getattr__(self, name):
        return getattr(self.loader, name)

    def exec_module(self, module):
        global depth
        depth += 1
        try:
            self.loader.exec_module(module)
        finally:
            depth -= 1
            if not depth:
                settle(blame=False)

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in own:
            return None
        if not depth:  # here, since the module is among those imported before it is executed
            settle(blame=True)
        found = PathFinder.find_spec(name, path, target)
        if found is not None and hasattr(found.loader, "exec_module"):
            found.loader = Watched(found.loader)
        return found

sys.meta_path.insert(0, Finder())
getattr(importlib.import_module(module), name)()
settle(blame=True)
print(json.dumps(sorted(changed)))
"""


@check("state.importing", scope="backend")
def importing(subject: Subject) -> None:
    """Importing the factory's module and making the backend leave a new process as it was: thread counts, the default
    dtype, warning filters, the root logger, random generators, the environment and all else that ``state.process``,
    ``state.random`` and ``state.framework`` look at. What the frameworks themselves do when they are imported does not
    count.

    Why: whatever has been set by the first import is never seen by checks of what comes after it, and no caller can
    know where it comes from.
    Caught: ``torch.set_num_threads``, ``warnings.filterwarnings("ignore")`` and ``logging.basicConfig()`` at the top of
    a module, which no other check noticed.
    Mend: set nothing when a module is imported; use scopes that restore what they set, around the call that needs it.
    """
    spec = subject.registry.spec(subject.backend_name)
    plugin = subject.registry.plugin(subject.backend_name)
    changed = ask(IMPORT, spec.factory, *sorted(own_packages(plugin, spec)))
    subject.expect(not changed, "importing the backend changes the process", "as before", ", ".join(changed))
