//! Errors, named after what the caller can do.

/// Why an operation was not done. `Unavailable` and `OutcomeUnknown` are worth a retry by the user; the others are
/// answers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("the bucket does not exist")]
    NoSuchBucket,
    #[error("the bucket exists already and belongs to {owner}")]
    BucketExists { owner: String },
    #[error("the bucket is not empty")]
    BucketNotEmpty,
    #[error("the key does not exist")]
    NoSuchKey,
    #[error("the version does not exist")]
    NoSuchVersion,
    /// The newest version (empty `version`: plain GET) or the named one is a delete marker.
    #[error("the object is a delete marker")]
    DeleteMarker { version: String },
    #[error("the multipart upload does not exist")]
    NoSuchUpload,
    #[error("a precondition does not hold")]
    PreconditionFailed,
    #[error("part {detail} was not found or its ETag differs")]
    InvalidPart { detail: String },
    #[error("the parts are not in ascending order")]
    InvalidPartOrder,
    #[error("part {detail} is smaller than the minimum of 5 MiB")]
    EntityTooSmall { detail: String },
    #[error("the object has {detail} bytes, more than 5 TiB")]
    EntityTooLarge { detail: String },
    /// Object lock forbids it, as the text says.
    #[error("{0}")]
    ObjectLocked(String),
    /// The bucket has no object lock.
    #[error("the bucket has no object lock")]
    NotLockable,
    /// Nothing was written: the bucket may hold no more than `limit`.
    #[error("the quota of the bucket is {limit}")]
    QuotaExceeded { limit: String },
    /// Nothing was written: a later holder of the lock has written already. The text has key and tokens.
    #[error("the fence token is stale: {0}")]
    StaleFence(String),
    #[error("the bucket takes no write without a fence token")]
    FenceRequired,
    #[error("{0}")]
    Invalid(String),
    #[error("the access key exists already")]
    KeyExists,
    #[error("the access key does not exist")]
    NoSuchAccessKey,
    /// The disks are too full for writes; reads and deletes work.
    #[error("the cluster has no space left for new data; delete something or add disks")]
    Full,
    /// Nothing was done; a later try may succeed.
    #[error("{0}")]
    Unavailable(String),
    /// The command may or may not have been executed, and never will be again.
    #[error("the outcome is unknown: {0}")]
    OutcomeUnknown(String),
    /// Every copy that could be reached is damaged or gone. Names what is lost.
    #[error("data is damaged: {0}")]
    Damaged(String),
    #[error("not implemented: {0}")]
    NotImplemented(String),
}
