//! Installs the drivers, once, into a cache.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, Result, ensure};

use super::application::Application;

const PYTHON: &str = "install Python 3.9 or later with its venv module (Debian: python3 python3-venv)";
const C: &str =
    "install a C compiler, pkg-config and libmongoc with its headers (Debian: gcc pkg-config libmongoc-dev)";
const PERL: &str = "install Perl with its driver (Debian: libmongodb-perl)";
const NODE: &str = "install Node.js 20 or later with npm";

/// pymongo.
pub(crate) async fn python() -> Result<Application> {
    python_script("python/app.py").await
}

/// Another script with pymongo.
pub(crate) async fn python_script(script: &str) -> Result<Application> {
    let python = tokio::task::spawn_blocking(|| {
        let wanted = source("python/requirements.txt");
        installed("python", &wanted, |folder| {
            run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(folder), PYTHON)?;
            let mut pip = Command::new(folder.join("bin/python"));
            pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"]).arg(&wanted);
            run(&mut pip, "pip must be able to install pymongo").map(|_| ())
        })
    });
    let python = python.await??.join("bin/python");
    Ok(Application::Script(vec![python.into(), "-B".into(), source(script).into()]))
}

/// The driver for Node, with mongoose.
pub(crate) async fn node() -> Result<Application> {
    node_script("app.mjs", "node/app.mjs").await
}

/// Another script with the driver for Node.
pub(crate) async fn node_script(name: &str, script: &str) -> Result<Application> {
    // Modules are looked for from the script's own folder upwards, so it stands beside them.
    let script = beside_modules(name, script).await?;
    Ok(Application::Script(vec!["node".into(), script]))
}

/// libmongoc.
pub(crate) async fn c() -> Result<Application> {
    c_program("c", "c/app.c").await
}

/// Another program with libmongoc, which lies in the cache under `name`.
pub(crate) async fn c_program(name: &'static str, code: &'static str) -> Result<Application> {
    let program = tokio::task::spawn_blocking(move || {
        let wanted = source(code);
        installed(name, &wanted, |folder| {
            let flags = run(Command::new("pkg-config").args(["--cflags", "--libs", "libmongoc-1.0"]), C)?;
            let mut compiler = Command::new("cc");
            compiler
                .args(["-Wall", "-Wextra", "-Werror", "-O1", "-pthread", "-o"])
                .arg(folder.join("app"))
                .arg(&wanted);
            run(compiler.args(flags.split_whitespace()), C).map(|_| ())
        })
    });
    Ok(Application::Script(vec![program.await??.join("app").into()]))
}

/// The driver for Perl.
pub(crate) async fn perl() -> Result<Application> {
    perl_script("perl/app.pl").await
}

/// Another script with the driver for Perl.
pub(crate) async fn perl_script(script: &str) -> Result<Application> {
    tokio::task::spawn_blocking(|| run(Command::new("perl").args(["-MMongoDB", "-e", "1"]), PERL)).await??;
    Ok(Application::Script(vec!["perl".into(), source(script).into()]))
}

/// A script of mongosh's.
pub(crate) async fn mongosh(name: &str, script: &str) -> Result<Application> {
    let script = beside_modules(name, script).await?;
    let shell = modules().await?.join("node_modules/mongosh/bin/mongosh.js");
    let words = [shell.into(), "--nodb".into(), "--norc".into(), "--quiet".into(), "--file".into(), script];
    Ok(Application::Script([OsString::from("node")].into_iter().chain(words).collect()))
}

async fn beside_modules(name: &str, script: &str) -> Result<OsString> {
    let folder = modules().await?;
    let place = folder.join(name);
    // Tests run side by side, those of several checkouts too: written whole or not at all.
    let whole = tempfile::NamedTempFile::new_in(&folder)?;
    fs::copy(source(script), whole.path())?;
    whole.persist(&place)?;
    Ok(place.into())
}

async fn modules() -> Result<PathBuf> {
    tokio::task::spawn_blocking(|| {
        let wanted = source("node/package.json");
        installed("node", &wanted, |folder| {
            fs::copy(&wanted, folder.join("package.json"))?;
            let mut npm = Command::new("npm");
            npm.args(["install", "--no-audit", "--no-fund", "--package-lock=false", "--ignore-scripts"]);
            run(npm.current_dir(folder), NODE)?;
            run(Command::new("node").arg("--version"), NODE).map(|_| ())
        })
    })
    .await?
}

/// A folder that holds what `wanted` lists, installed by `install` if it does not yet.
fn installed(name: &str, wanted: &Path, install: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let cache = cache();
    fs::create_dir_all(&cache).with_context(|| format!("creating {}", cache.display()))?;
    let lock = lock(&cache.join(format!("{name}.lock")))?;
    let (folder, mark) = (cache.join(name), cache.join(format!("{name}.installed")));
    let list = fs::read(wanted)?;
    if fs::read(&mark).is_ok_and(|installed| installed == list) {
        return Ok(folder);
    }
    _ = fs::remove_file(&mark);
    fs::create_dir_all(&folder)?;
    install(&folder).with_context(|| format!("installing the drivers for {name}"))?;
    fs::write(&mark, list)?;
    drop(lock);
    Ok(folder)
}

fn lock(path: &Path) -> Result<File> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
    file.lock()?;
    Ok(file)
}

fn cache() -> PathBuf {
    match std::env::var_os("RESHARD_DRIVERS_CACHE").filter(|value| !value.is_empty()) {
        Some(cache) => cache.into(),
        None => Path::new(env!("CARGO_TARGET_TMPDIR")).join("drivers-cache"),
    }
}

fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/drivers").join(path)
}

/// What it says.
fn run(command: &mut Command, remedy: &str) -> Result<String> {
    let Output { status, stdout, stderr } =
        command.output().with_context(|| format!("{command:?} cannot run: {remedy}"))?;
    let said = [stdout, stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    ensure!(status.success(), "{command:?}: {status}: {remedy}\n{said}");
    Ok(said)
}
