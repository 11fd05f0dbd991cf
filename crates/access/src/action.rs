//! The actions that policies speak of.

/// An action as policies name it, such as `s3:GetObject`. Only those of the table exist, so that no request can be
/// decided under a name that no policy could have meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub struct Action(&'static str);

macro_rules! actions {
    ($($constant:ident = $name:literal,)*) => {
        impl Action {
            $(pub const $constant: Action = Action(concat!("s3:", $name));)*
            /// Every action that a request to this server can be decided under.
            pub const ALL: &'static [Action] = &[$(Action::$constant,)*];
        }
    };
}

actions! {
    ABORT_MULTIPART_UPLOAD = "AbortMultipartUpload",
    BYPASS_GOVERNANCE_RETENTION = "BypassGovernanceRetention",
    CREATE_BUCKET = "CreateBucket",
    DELETE_BUCKET = "DeleteBucket",
    DELETE_BUCKET_POLICY = "DeleteBucketPolicy",
    DELETE_OBJECT = "DeleteObject",
    DELETE_OBJECT_TAGGING = "DeleteObjectTagging",
    DELETE_OBJECT_VERSION = "DeleteObjectVersion",
    DELETE_OBJECT_VERSION_TAGGING = "DeleteObjectVersionTagging",
    GET_ACCELERATE_CONFIGURATION = "GetAccelerateConfiguration",
    GET_BUCKET_ACL = "GetBucketAcl",
    GET_BUCKET_CORS = "GetBucketCORS",
    GET_BUCKET_LOCATION = "GetBucketLocation",
    GET_BUCKET_LOGGING = "GetBucketLogging",
    GET_BUCKET_NOTIFICATION = "GetBucketNotification",
    GET_BUCKET_OBJECT_LOCK_CONFIGURATION = "GetBucketObjectLockConfiguration",
    GET_BUCKET_OWNERSHIP_CONTROLS = "GetBucketOwnershipControls",
    GET_BUCKET_POLICY = "GetBucketPolicy",
    GET_BUCKET_POLICY_STATUS = "GetBucketPolicyStatus",
    GET_BUCKET_PUBLIC_ACCESS_BLOCK = "GetBucketPublicAccessBlock",
    GET_BUCKET_REQUEST_PAYMENT = "GetBucketRequestPayment",
    GET_BUCKET_TAGGING = "GetBucketTagging",
    GET_BUCKET_VERSIONING = "GetBucketVersioning",
    GET_BUCKET_WEBSITE = "GetBucketWebsite",
    GET_ENCRYPTION_CONFIGURATION = "GetEncryptionConfiguration",
    GET_LIFECYCLE_CONFIGURATION = "GetLifecycleConfiguration",
    GET_OBJECT = "GetObject",
    GET_OBJECT_ACL = "GetObjectAcl",
    GET_OBJECT_ATTRIBUTES = "GetObjectAttributes",
    GET_OBJECT_LEGAL_HOLD = "GetObjectLegalHold",
    GET_OBJECT_RETENTION = "GetObjectRetention",
    GET_OBJECT_TAGGING = "GetObjectTagging",
    GET_OBJECT_VERSION = "GetObjectVersion",
    GET_OBJECT_VERSION_ACL = "GetObjectVersionAcl",
    GET_OBJECT_VERSION_ATTRIBUTES = "GetObjectVersionAttributes",
    GET_OBJECT_VERSION_TAGGING = "GetObjectVersionTagging",
    GET_REPLICATION_CONFIGURATION = "GetReplicationConfiguration",
    LIST_ALL_MY_BUCKETS = "ListAllMyBuckets",
    LIST_BUCKET = "ListBucket",
    LIST_BUCKET_MULTIPART_UPLOADS = "ListBucketMultipartUploads",
    LIST_BUCKET_VERSIONS = "ListBucketVersions",
    LIST_MULTIPART_UPLOAD_PARTS = "ListMultipartUploadParts",
    PUT_BUCKET_ACL = "PutBucketAcl",
    PUT_BUCKET_CORS = "PutBucketCORS",
    PUT_BUCKET_OBJECT_LOCK_CONFIGURATION = "PutBucketObjectLockConfiguration",
    PUT_BUCKET_OWNERSHIP_CONTROLS = "PutBucketOwnershipControls",
    PUT_BUCKET_POLICY = "PutBucketPolicy",
    PUT_BUCKET_PUBLIC_ACCESS_BLOCK = "PutBucketPublicAccessBlock",
    PUT_BUCKET_REQUEST_PAYMENT = "PutBucketRequestPayment",
    PUT_BUCKET_TAGGING = "PutBucketTagging",
    PUT_BUCKET_VERSIONING = "PutBucketVersioning",
    PUT_ENCRYPTION_CONFIGURATION = "PutEncryptionConfiguration",
    PUT_LIFECYCLE_CONFIGURATION = "PutLifecycleConfiguration",
    PUT_OBJECT = "PutObject",
    PUT_OBJECT_ACL = "PutObjectAcl",
    PUT_OBJECT_LEGAL_HOLD = "PutObjectLegalHold",
    PUT_OBJECT_RETENTION = "PutObjectRetention",
    PUT_OBJECT_TAGGING = "PutObjectTagging",
    PUT_OBJECT_VERSION_ACL = "PutObjectVersionAcl",
    PUT_OBJECT_VERSION_TAGGING = "PutObjectVersionTagging",
    PUT_REPLICATION_CONFIGURATION = "PutReplicationConfiguration",
    DELETE_BUCKET_WEBSITE = "DeleteBucketWebsite",
}

/// Actions that AWS has and no request to this server is decided under: policies written for AWS name them.
const FOREIGN: &[&str] = &[
    "s3:CreateSession",
    "s3:GetAnalyticsConfiguration",
    "s3:GetBucketMetadataTableConfiguration",
    "s3:GetIntelligentTieringConfiguration",
    "s3:GetInventoryConfiguration",
    "s3:GetMetricsConfiguration",
    "s3:GetObjectTorrent",
    "s3:GetObjectVersionForReplication",
    "s3:GetObjectVersionTorrent",
    "s3:InitiateReplication",
    "s3:ObjectOwnerOverrideToBucketOwner",
    "s3:PostBucketLogging",
    "s3:PutAccelerateConfiguration",
    "s3:PutAnalyticsConfiguration",
    "s3:PutBucketLogging",
    "s3:PutBucketNotification",
    "s3:PutBucketWebsite",
    "s3:PutIntelligentTieringConfiguration",
    "s3:PutInventoryConfiguration",
    "s3:PutMetricsConfiguration",
    "s3:ReplicateDelete",
    "s3:ReplicateObject",
    "s3:ReplicateTags",
    "s3:RestoreObject",
    "s3:UpdateObjectEncryption",
];

impl Action {
    pub fn as_str(self) -> &'static str {
        self.0
    }

    /// The action called `name`, in any case.
    pub fn named(name: &str) -> Option<Action> {
        Action::ALL.iter().copied().find(|action| action.0.eq_ignore_ascii_case(name))
    }

    /// Names that a policy may speak of.
    pub(crate) fn names() -> impl Iterator<Item = &'static str> {
        Action::ALL.iter().map(|action| action.0).chain(FOREIGN.iter().copied())
    }
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}
