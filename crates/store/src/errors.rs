//! What can go wrong on one disk, named after what the caller can do about it.

use std::io;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No record of this id: ask another copy.
    #[error("this disk holds no such chunk")]
    NotFound,
    /// A tombstone covers this id, and always will: never store it again.
    #[error("the chunk was deleted")]
    Deleted,
    /// The bytes are here and do not verify: read another copy, then repair this one.
    #[error("damaged: {0}")]
    Damaged(String),
    /// The id already names other bytes. A bug or a zombie: alarm, never retry.
    #[error("the same chunk id was stored before with other bytes")]
    Conflict,
    /// The bytes do not match the checksum that came with them: send them again.
    #[error("the payload does not match its checksum")]
    BadPayload,
    /// The request breaks a documented limit: it can never succeed.
    #[error("refused: {0}")]
    Invalid(String),
    /// No room for new data: reads and deletes go on.
    #[error("the disk is full")]
    Full,
    /// A write or flush failed earlier: all writing on this disk has stopped until it is replaced or reopened.
    #[error("the disk takes no more writes: {0}")]
    Broken(String),
    /// Another process or engine holds the directory.
    #[error("the disk directory is in use by another process")]
    InUse,
    /// There is no identity: format it first.
    #[error("the directory is not formatted")]
    NotFormatted,
    /// There is something in the directory that henge did not write, or not for this disk.
    #[error("not an empty directory and not a henge disk: {0}")]
    Foreign(String),
    /// Both copies of the identity are damaged: the disk must be replaced or the identity restored.
    #[error("the disk's identity is damaged: {0}")]
    IdentityDamaged(String),
    /// Written by a later version.
    #[error("the disk has format version {found}, this binary knows up to {known}")]
    NewerFormat { found: u16, known: u16 },
    /// The engine was closed.
    #[error("the store is closed")]
    Closed,
    /// The operating system refused; nothing was changed.
    #[error("disk i/o: {0}")]
    Io(String),
}

impl StoreError {
    pub(crate) fn io(what: &str, error: &io::Error) -> StoreError {
        StoreError::Io(format!("{what}: {error}"))
    }
}

impl From<io::Error> for StoreError {
    fn from(error: io::Error) -> StoreError {
        StoreError::Io(error.to_string())
    }
}

/// Whether the disk said that it has no room. Such an error leaves what was acknowledged untouched.
pub(crate) fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
}
