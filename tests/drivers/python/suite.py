#!/usr/bin/env python3
"""PyMongo's own tests, directly and through the proxy: both columns and the difference.

    suite.py [--ways replica-set,async,dual-write] [--only MODULE ...] [--keep FOLDER] --bin FOLDER --cache FOLDER

A way is two runs: on a cluster of the test bed, and through `reshard serve` in front of another one like it.

replica-set  directly on a replica set; through the face of a replica set, without a migration
async        the same with the suite's asynchronous tests
dual-write   directly on a replica set; through the default face, with a second cluster and a migration of the
             suite's databases in dual write. In both columns collections are emptied where the suite drops them

What passes directly and not through the proxy is run again on both sides, and counts if that happens three times out
of three. It ends with 1 if something counts that is not in suite-known.txt.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
import xml.etree.ElementTree as xml

HERE = pathlib.Path(__file__).resolve().parent
REQUIREMENTS = HERE / "suite-requirements.txt"
KNOWN = HERE / "suite-known.txt"
# What migrates in dual write. Not what single tests use: they create views and capped collections there.
DATABASES = """
    pymongo_test crud-tests crud-v1 crud-v2 retryable-reads-tests retryable-writes-tests transaction-tests
    withTransaction-tests session-tests command-monitoring-tests default-write-concern-tests
""".split()

# Not run in either column: what needs other servers (Atlas, KMS, LDAP, DNS, mockupdb, SOCKS, TLS), and what never
# connects to one.
LEFT_OUT = """
    auth auth_oidc auth_spec azure_helpers binary bson bson_binary_vector bson_corpus code common
    credential_disclosure daemon dbref decimal128 default_exports dns encryption errors event_loggers fuzz_capture
    gcp_helpers json_util kms_connect kms_connect_prose message network_layer async_network_layer objectid ocsp_cache
    ocsp_support on_demand_csfle operations periodic_executor pymongo pyopenssl_context raw_bson_shared saslprep
    server_description server_selection_rtt sfp son srv_polling ssl ssl_support timestamp typing typing_strict
    uri_parser uri_spec
""".split()

# A migration cannot begin with nothing.
SEED = "import pymongo, sys; pymongo.MongoClient(sys.argv[1]).pymongo_test.seed.insert_one({})"


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--ways", default="replica-set,async,dual-write")
    arguments.add_argument("--only", nargs="*", default=[], help="modules, without test_ and .py")
    folder = lambda path: pathlib.Path(path).resolve()
    arguments.add_argument("--at-once", action="store_true", help="both columns at the same time")
    arguments.add_argument("--keep", type=folder, help="where the runs leave what they say")
    arguments.add_argument("--bin", type=folder, required=True, help="reshard and reshard-testbed")
    arguments.add_argument("--cache", type=folder, required=True, help="PyMongo and its tests")
    given = arguments.parse_args()
    python, tests = prepared(given.cache)
    known = dict(line.split(None, 1) for line in KNOWN.read_text().splitlines() if line and line[0] != "#")
    folder = given.keep or pathlib.Path(tempfile.mkdtemp(prefix="driver-suite-"))
    folder.mkdir(parents=True, exist_ok=True)
    print(f"what the runs say: {folder}", flush=True)
    unknown = []
    for way in given.ways.split(","):
        differ = compared(Way(way, given, python, tests, folder))
        unknown += [f"{way}: {name}" for name in differ if without_class(name) not in known]
    for name in unknown:
        print(f"not in {KNOWN.name}: {name}")
    sys.exit(1 if unknown else 0)


def without_class(name):
    """The module and the test."""
    path, *_, test = name.split("::")
    return f"{path.rsplit('/', 1)[-1]}::{test}"


def prepared(cache):
    """An interpreter with the driver, and the folder of its tests: made once."""
    folder, mark = cache / "python-suite", cache / "python-suite.installed"
    python = folder / "venv/bin/python"
    if not mark.exists() or mark.read_text() != REQUIREMENTS.read_text():
        mark.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder / "venv"], check=True)
        pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "-r", REQUIREMENTS], check=True)
        driver = REQUIREMENTS.read_text().split()[0]
        source = ["download", "--no-deps", "--no-binary", ":all:", "--dest", folder, driver]
        subprocess.run([*pip, *source], check=True)
        archive = folder / (driver.replace("==", "-") + ".tar.gz")
        with tarfile.open(archive) as packed:
            # The driver's own sources would be found before the installed one.
            wanted = lambda one: one.name.split("/")[1] in ("test", "tools", "pyproject.toml")
            packed.extractall(folder, members=[one for one in packed if wanted(one)], filter="data")
        mark.write_text(REQUIREMENTS.read_text())
    return python, next(path for path in folder.glob("pymongo-*") if path.is_dir())


class Way:
    """Where the runs go, and what they run."""

    def __init__(self, name, given, python, tests, folder):
        self.name, self.bin, self.python, self.tests = name, given.bin, python, tests
        self.folder = folder / name
        self.folder.mkdir(exist_ok=True)
        self.at_once = given.at_once
        self.migrates = name == "dual-write"
        self.mark = "default_async" if name == "async" else "default"
        where = pathlib.Path("test/asynchronous" if name == "async" else "test")
        modules = sorted(path.name for path in (tests / where).glob("test_*.py"))
        wanted = lambda module: module in given.only if given.only else module not in LEFT_OUT
        self.modules = [str(where / name) for name in modules if wanted(name.removeprefix("test_")[:-3])]

    def run(self, label, port, what):
        """Runs tests; the results by name."""
        report = self.folder / f"{label}.xml"
        environment = {**os.environ, "DB_IP": "127.0.0.1", "DB_PORT": str(port)}
        command = [self.python, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", "--timeout=240"]
        if self.migrates:
            environment |= {"PYTHONPATH": str(HERE), "SUITE_DATABASES": ",".join(DATABASES)}
            command += ["-p", "without_drops"]
        command += ["-o", "addopts=--strict-config --strict-markers", "-m", self.mark, f"--junitxml={report}"]
        with open(self.folder / f"{label}.out", "w") as out:
            subprocess.run([*command, *what], cwd=self.tests, env=environment, stdout=out, stderr=out)
        return results(report)


def results(report):
    """passed, failed or skipped, by the name that pytest takes."""
    found = {}
    for case in xml.parse(report).getroot().iter("testcase"):
        if not case.get("classname"):
            continue  # What went wrong before there were tests.
        module, _, group = case.get("classname").rpartition(".")
        if group.startswith("test_"):
            module, group = case.get("classname"), ""
        path = module.replace(".", "/") + ".py"
        name = "::".join(part for part in (path, group, case.get("name")) if part)
        outcomes = {child.tag for child in case}
        failed = outcomes & {"failure", "error"}
        found[name] = "failed" if failed else "skipped" if "skipped" in outcomes else "passed"
    return found


def compared(way):
    """Runs both columns, prints them, and returns what counts as different."""
    with Bed(way, "direct") as direct, Bed(way, "proxy") as proxy:
        runs = both(way, direct.port, proxy.port, "all", way.modules)
        different = [name for name, result in runs[0].items() if result == "passed" and runs[1].get(name) != "passed"]
        skipped = [name for name in different if runs[1].get(name) == "skipped"]
        suspects = [name for name in different if name not in skipped]
        for attempt in ("again", "once-more"):
            if suspects:
                again = both(way, direct.port, proxy.port, attempt, suspects)
                counts = lambda name: again[0].get(name) == "passed" and again[1].get(name) != "passed"
                suspects = [name for name in suspects if counts(name)]
    table(way, runs)
    print(f"passed directly, skipped through the proxy: {len(skipped)}")
    for name in skipped:
        print(f"  {name}")
    print(f"passed directly, failed through the proxy: {len(different) - len(skipped)} once, {len(suspects)} always")
    for name in suspects:
        print(f"  {name}", flush=True)
    return suspects


def both(way, direct, proxy, label, what):
    """Both columns, one after the other if not told otherwise: what waits for time fails by chance on a busy machine."""
    columns = [(f"direct-{label}", direct, what), (f"proxy-{label}", proxy, what)]
    with concurrent.futures.ThreadPoolExecutor(2 if way.at_once else 1) as pool:
        return list(pool.map(lambda column: way.run(*column), columns))


def table(way, runs):
    print(f"\n{way.name:45} {'directly':>17} {'through reshard':>17}\n{'module':45}" + "  passed  failed" * 2)
    modules = sorted({name.split("::")[0] for run in runs for name in run})
    count = lambda run, module, result: sum(
        found == result and (module is None or name.startswith(f"{module}::")) for name, found in run.items()
    )
    for module in [*modules, None]:
        cells = [f"{count(run, module, result):8}" for run in runs for result in ("passed", "failed")]
        print(f"{module or 'all':45}" + "".join(cells))


class Bed:
    """A cluster, and for the column `proxy` what stands before it."""

    def __init__(self, way, column):
        self.way, self.column, self.children = way, column, []

    def __enter__(self):
        uri = self.cluster(f"suite-{self.column}")
        self.port = int(uri.split(":")[2].split("/")[0])
        if self.column == "proxy":
            self.port = free_port()
            self.proxy(uri)
        return self

    def __exit__(self, *_):
        for child in reversed(self.children):
            child.send_signal(signal.SIGTERM)
            child.wait()

    def cluster(self, name):
        words = [self.way.bin / "reshard-testbed", "up", "--name", name, "--ignore-stdin"]
        log = open(self.way.folder / f"{name}.log", "w")
        child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=log, text=True)
        self.children.append(child)
        uri = child.stdout.readline().strip()
        if not uri:
            sys.exit(f"no cluster; see {log.name}")
        return uri

    def proxy(self, uri):
        admin, migrates = free_port(), self.way.migrates
        face = '"mongos"' if migrates else '"replica-set"\nset_name = "suite-proxy"'
        new = f'[new]\nuri = "{self.cluster("suite-new")}"\n' if migrates else ""
        config = self.way.folder / "reshard.toml"
        config.write_text(
            f'[listen]\naddress = "127.0.0.1:{self.port}"\nface = {face}\n[old]\nuri = "{uri}"\n{new}'
            f'[admin]\naddress = "127.0.0.1:{admin}"\n'
        )
        log = open(self.way.folder / "reshard.log", "w")
        serve = [self.way.bin / "reshard", "serve", "--config", config]
        self.children.append(subprocess.Popen(serve, stdout=log, stderr=log))
        until(lambda: ask(admin, "GET", "/readyz", text=True) is not None, "the proxy is not ready")
        if migrates:
            seed = [self.way.python, "-c", SEED, f"mongodb://127.0.0.1:{self.port}/"]
            subprocess.run(seed, check=True)
            namespaces = [{"namespace": f"{database}.*"} for database in DATABASES]
            ask(admin, "POST", "/v1/migrations", {"name": "suite", "namespaces": namespaces})
            ask(admin, "POST", "/v1/migrations/suite/start", {})
            synced = lambda: ask(admin, "GET", "/v1/migrations/suite")["phase"] == "synced"
            until(synced, "the migration does not reach dual write")


def ask(port, method, path, body=None, text=False):
    data = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers, method=method)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.read() if text else json.load(answer)
    except urllib.error.HTTPError as error:
        if text:
            return None
        sys.exit(f"{method} {path}: {error.read().decode()}")
    except OSError:
        return None


def until(holds, otherwise):
    end = time.monotonic() + 120
    while not holds():
        if time.monotonic() > end:
            sys.exit(otherwise)
        time.sleep(0.2)


def free_port():
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


if __name__ == "__main__":
    main()
