//! Finding the user's own mongos.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::binary::Mongod;

const VARIABLE: &str = "RESHARD_MONGOS";
const NAME: &str = "mongos";

/// Where a mongos is, if there is one, and whether the user named it.
fn look() -> Option<(PathBuf, bool)> {
    if let Some(path) = std::env::var_os(VARIABLE).filter(|value| !value.is_empty()) {
        return Some((PathBuf::from(path), true));
    }
    let search = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&search).map(|folder| folder.join(NAME)).find(|path| path.is_file());
    found.map(|path| (path, false))
}

/// A mongos of whatever version.
pub(super) fn find_any() -> Option<PathBuf> {
    look().map(|(path, _)| path)
}

/// A mongos of the same series as `mongod`. One that the user named has to fit, one that just lies there has
/// not.
pub(super) fn find_for(mongod: &Mongod) -> Result<Option<Mongod>> {
    let Some((path, named)) = look() else { return Ok(None) };
    let fits = probe(&path, mongod);
    match fits {
        Ok(mongos) => Ok(Some(mongos)),
        Err(error) if named => Err(error.context(format!("${VARIABLE}"))),
        Err(_) => Ok(None),
    }
}

fn probe(path: &Path, mongod: &Mongod) -> Result<Mongod> {
    let mongos = Mongod::probe_program(path, None, "mongos version v")
        .with_context(|| format!("{} is no mongos", path.display()))?;
    if series(mongos.version()) != series(mongod.version()) {
        bail!("mongos {} does not fit mongod {}", mongos.version(), mongod.version());
    }
    Ok(mongos)
}

/// `6.0` of `6.0.5`.
fn series(version: &str) -> &str {
    let dots = version.match_indices('.').nth(1);
    dots.map_or(version, |(end, _)| &version[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_of_versions() {
        assert_eq!(series("6.0.5"), "6.0");
        assert_eq!(series("7.1"), "7.1");
    }
}
