//! The cache folder shared by all test processes of a user, and locks in it.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// `$RESHARD_TESTBED_CACHE`, else `reshard-testbed` in the user's cache folder; created if needed.
pub(crate) fn folder() -> Result<PathBuf> {
    let path = match std::env::var_os("RESHARD_TESTBED_CACHE").filter(|value| !value.is_empty()) {
        Some(path) => PathBuf::from(path),
        None => user_cache().join("reshard-testbed"),
    };
    fs::create_dir_all(&path).with_context(|| format!("creating the cache folder {}", path.display()))?;
    Ok(path)
}

fn user_cache() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_CACHE_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".cache")))
        .unwrap_or_else(std::env::temp_dir)
}

/// Opens (or creates) a lock file without taking the lock. The lock ends with the file handle, also
/// when the process is killed.
pub(crate) fn lock_file(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| format!("opening the lock file {}", path.display()))
}

/// Waits for the exclusive lock on `path`.
pub(crate) fn lock(path: &Path) -> Result<File> {
    let file = lock_file(path)?;
    file.lock().with_context(|| format!("locking {}", path.display()))?;
    Ok(file)
}
