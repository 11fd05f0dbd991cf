//! Private directories that vanish when they are no longer needed: for the demo, the benchmarks and tests.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, fs, io, process};

pub struct ScratchDir {
    path: PathBuf,
}

impl ScratchDir {
    /// Makes a new directory, readable by its owner only, below `parent`.
    pub fn create(parent: &Path, purpose: &str) -> io::Result<ScratchDir> {
        use std::os::unix::fs::DirBuilderExt;
        static MADE: AtomicU32 = AtomicU32::new(0);
        loop {
            let unique = MADE.fetch_add(1, Ordering::Relaxed);
            let path = parent.join(format!("henge-{purpose}-{}-{unique}", process::id()));
            match fs::DirBuilder::new().mode(0o700).create(&path) {
                // Left behind by an earlier process of the same id.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                outcome => return outcome.map(|()| ScratchDir { path }),
            }
        }
    }

    /// As `create`, in the system's place for temporary files.
    pub fn create_temporary(purpose: &str) -> io::Result<ScratchDir> {
        ScratchDir::create(&env::temp_dir(), purpose)
    }

    #[cfg(test)]
    pub fn new(purpose: &str) -> ScratchDir {
        ScratchDir::create_temporary(purpose).unwrap()
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ScratchDir {
    fn drop(&mut self) {
        // What cannot be removed stays behind in the place for temporary files.
        let _ = fs::remove_dir_all(&self.path);
    }
}
