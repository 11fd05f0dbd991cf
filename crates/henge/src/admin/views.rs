//! What requests to the admin port carry, and its answers.

use serde::{Deserialize, Serialize};

/// An access key without its secret.
#[derive(Serialize, Deserialize, Debug)]
pub struct KeyView {
    pub name: String,
    pub access_key: String,
    pub created_ms: u64,
    pub root: bool,
    /// JSON; empty: none.
    pub policy: String,
}

#[derive(Serialize, Deserialize)]
pub struct KeyWish {
    pub name: String,
    #[serde(default)]
    pub policy: String,
}

#[derive(Serialize, Deserialize)]
pub struct KeyPolicy {
    pub policy: String,
}

/// What a bucket may hold at most; absent: any amount.
#[derive(Serialize, Deserialize, Default)]
pub struct QuotaWish {
    pub bytes_max: Option<u64>,
    pub objects_max: Option<u64>,
}

/// A quota with what the bucket holds; nothing is counted in a bucket without one.
#[derive(Serialize, Deserialize)]
pub struct QuotaView {
    pub bytes_max: Option<u64>,
    pub objects_max: Option<u64>,
    pub bytes: Option<u64>,
    pub objects: Option<u64>,
    /// What was there before the quota is still being counted.
    pub counting: bool,
}

/// A fresh access key: the only answer that carries a secret.
#[derive(Serialize, Deserialize)]
pub struct NewKeyView {
    pub name: String,
    pub access_key: String,
    pub secret_key: String,
    pub created_ms: u64,
}

#[derive(Serialize, Deserialize, Debug)]
pub struct BucketView {
    pub name: String,
    pub owner: String,
    pub created_ms: u64,
    pub region: String,
    /// `off`, `enabled` or `suspended`.
    pub versioning: String,
    /// Whether writes need a fence token.
    pub fence_required: bool,
    /// What a write waits for that does not say anything else.
    pub acknowledge: String,
}

#[derive(Serialize, Deserialize)]
pub struct Named {
    pub name: String,
}

/// What is absent stays as it is.
#[derive(Serialize, Deserialize, Default)]
pub struct BucketChange {
    /// `enabled` or `suspended`.
    #[serde(default)]
    pub versioning: Option<String>,
    /// Whether writes need a fence token.
    #[serde(default)]
    pub fence_required: Option<bool>,
    /// `all-strict`, `all`, `majority` or `one`.
    #[serde(default)]
    pub acknowledge: Option<String>,
}

#[derive(Serialize, Deserialize)]
pub struct PoolWish {
    pub name: String,
    pub class: String,
    pub copies: u32,
}

#[derive(Serialize, Deserialize)]
pub struct PoolView {
    pub id: u32,
    pub name: String,
    /// The storage class by which clients name it.
    pub class: String,
    /// The copies that were asked for.
    pub copies: u32,
    /// The copies that there are nodes for now.
    pub copies_effective: u32,
}

#[derive(Serialize, Deserialize)]
pub struct FenceWish {
    pub key: String,
}

/// The floor of a fence as it shall be.
#[derive(Serialize, Deserialize)]
pub struct FenceFloor {
    pub key: String,
    /// Absent: none.
    #[serde(default)]
    pub token: Option<u64>,
}

/// `KEY:TOKEN` for the header `x-henge-fence`.
#[derive(Serialize, Deserialize)]
pub struct FenceView {
    pub key: String,
    pub token: u64,
}

/// The root user as it shall be: the only request that carries a secret.
#[derive(Serialize, Deserialize)]
pub struct RootWish {
    pub access_key: String,
    pub secret_key: String,
}

#[derive(Serialize, Deserialize)]
pub struct RootView {
    pub access_key: String,
    /// How often a command has set it.
    pub changes: u64,
}

#[derive(Serialize, Deserialize)]
pub struct TokenWish {
    pub expires_s: u64,
}

/// A fresh join token: carries a secret.
#[derive(Serialize, Deserialize)]
pub struct NewTokenView {
    pub token: String,
    pub expires_ms: u64,
    /// HOST:PORT to join at.
    pub join: String,
    /// Whole sentences: what may keep others from joining.
    pub notes: Vec<String>,
}

#[derive(Serialize, Deserialize)]
pub struct RemoveNode {
    pub lost: bool,
}

#[derive(Serialize, Deserialize)]
pub struct Drain {
    pub undo: bool,
}

/// The body of every answer that is no success.
#[derive(Serialize, Deserialize)]
pub struct Refusal {
    pub error: String,
}

impl From<client::PoolRow> for PoolView {
    fn from(row: client::PoolRow) -> PoolView {
        let client::PoolRow { id, name, copies, copies_effective, class, .. } = row;
        PoolView { id, name, class, copies, copies_effective }
    }
}
