//! Where the data of a cluster lies, and how it goes away.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::sys::statvfs::statvfs;
use tempfile::TempDir;

use crate::cache;

const PREFIX: &str = "reshard-testbed-data-";
const OWNER: &str = "owner.lock";
const MEMORY: &str = "/dev/shm";
const ROOM_WANTED: u64 = 2 << 30;

/// A folder that is removed on drop. Folders of processes that were killed are removed by the next one:
/// a folder belongs to whoever holds the lock in it, and the lock ends with its process.
#[derive(Debug)]
pub(crate) struct DataDir {
    folder: TempDir,
    _owner: File,
}

impl DataDir {
    pub(crate) fn create(name: &str) -> Result<Self> {
        let root = root();
        fs::create_dir_all(&root).with_context(|| format!("creating {}", root.display()))?;
        // Held over the sweep and the creation: a folder is never seen before its lock is taken.
        let _sweep = cache::lock(&root.join(format!("{PREFIX}sweep.lock")))?;
        remove_orphans(&root);
        let folder = tempfile::Builder::new()
            .prefix(&format!("{PREFIX}{name}-"))
            .tempdir_in(&root)
            .with_context(|| format!("creating a data folder in {}", root.display()))?;
        let owner = cache::lock(&folder.path().join(OWNER))?;
        Ok(Self { folder, _owner: owner })
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// `$RESHARD_TESTBED_DATA`, else memory where there is room, else the temporary folder.
fn root() -> PathBuf {
    if let Some(path) = std::env::var_os("RESHARD_TESTBED_DATA").filter(|value| !value.is_empty()) {
        return PathBuf::from(path);
    }
    let memory = Path::new(MEMORY);
    let room = statvfs(memory).map_or(0, |stat| stat.blocks_available() * stat.fragment_size());
    if room > ROOM_WANTED { memory.to_path_buf() } else { std::env::temp_dir() }
}

/// Best effort: what cannot be removed (another user's, say) is left.
fn remove_orphans(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let path = entry.path();
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX) && path.is_dir();
        if !ours {
            continue;
        }
        // Without the file somebody began to remove the folder and did not get to the end.
        let orphan = match File::open(path.join(OWNER)) {
            Ok(owner) => owner.try_lock().is_ok(),
            Err(error) => error.kind() == ErrorKind::NotFound,
        };
        if orphan {
            let _ = fs::remove_dir_all(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orphans_go_and_owned_folders_stay() {
        let root = tempfile::tempdir().unwrap();
        let orphan = root.path().join(format!("{PREFIX}dead-1"));
        let owned = root.path().join(format!("{PREFIX}alive-1"));
        let half_removed = root.path().join(format!("{PREFIX}dead-2"));
        let other = root.path().join("something-else");
        for folder in [&orphan, &owned, &half_removed, &other] {
            fs::create_dir(folder).unwrap();
            fs::write(folder.join(OWNER), "").unwrap();
        }
        fs::remove_file(half_removed.join(OWNER)).unwrap();
        let _lock = cache::lock(&owned.join(OWNER)).unwrap();
        remove_orphans(root.path());
        assert!(!orphan.exists() && !half_removed.exists() && owned.exists() && other.exists());
    }
}
