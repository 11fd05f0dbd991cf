//! Access keys.

use base::env::RandomExt;
use meta::map::ROOT_LEVEL_MIN;
use meta::map::command::{ClusterMap, KeyName, KeyRow, MapCommand, MapOutcome, NodeState, SetKeyPolicy, SetRootKey};

use crate::call::Client;
use crate::error::Error;

/// Longer ones were never made.
const ACCESS_KEY_LEN_MAX: usize = 128;

/// Characters of generated credentials: unambiguous in shells and URLs.
const ACCESS_ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
const SECRET_ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

impl Client {
    /// The key with its secret, or `None`. An unknown key is looked for in a fresh map.
    pub async fn access_key(&self, access_key: &str) -> Result<Option<KeyRow>, Error> {
        if let Some(row) = self.map().key(access_key) {
            return Ok(Some(row.clone()));
        }
        // Anybody can make up keys: looking for them must not load the cluster.
        if access_key.len() > ACCESS_KEY_LEN_MAX {
            return Ok(None);
        }
        Ok(self.refresh_map_sometimes().await?.key(access_key).cloned())
    }

    /// Makes an access key with random credentials. `policy`: as in [`Client::set_key_policy`].
    pub async fn create_access_key(&self, name: &str, policy: &str) -> Result<KeyRow, Error> {
        let row = KeyRow {
            access_key: format!("HENGE{}", self.random_text(ACCESS_ALPHABET, 15)),
            secret_key: self.random_text(SECRET_ALPHABET, 40),
            name: name.to_string(),
            created_ms: self.wall_ms(),
            policy: policy.to_string(),
            root: false,
            root_changes: 0,
        };
        self.insert_access_key(row).await
    }

    /// Replaces the policy of a key (JSON; empty: none), by access key or name. The caller has read it and found it good.
    pub async fn set_key_policy(&self, name: &str, policy: &str) -> Result<(), Error> {
        let set = SetKeyPolicy { name: name.to_string(), policy: policy.to_string() };
        let reply = self.change_map(MapCommand::SetKeyPolicy(set)).await?;
        match reply.outcome() {
            MapOutcome::Done => Ok(()),
            MapOutcome::NotFound => Err(Error::NoSuchAccessKey),
            _ => Err(Error::Invalid(reply.detail)),
        }
    }

    /// Adds a key with given credentials.
    pub async fn insert_access_key(&self, row: KeyRow) -> Result<KeyRow, Error> {
        let reply = self.change_map(MapCommand::CreateKey(row.clone())).await?;
        match reply.outcome() {
            MapOutcome::Done => Ok(row),
            MapOutcome::KeyExists => Err(Error::KeyExists),
            // A root key, and a command was faster: a newer map shows it.
            MapOutcome::Stale => Err(Error::Unavailable(reply.detail)),
            _ => Err(Error::Invalid(reply.detail)),
        }
    }

    /// Gives the root user another key in the place of `before`, whatever nodes are given when they start. Answers how often
    /// that was done. `Invalid` names the nodes that must be upgraded first, or says that somebody else was faster.
    pub async fn set_root_key(&self, before: &KeyRow, access_key: &str, secret_key: &str) -> Result<u64, Error> {
        check_level(&self.map().map)?;
        let set = SetRootKey {
            access_key: access_key.to_string(),
            secret_key: secret_key.to_string(),
            changes_before: before.root_changes,
            now_ms: self.wall_ms(),
        };
        let reply = self.change_map(MapCommand::SetRootKey(set)).await?;
        match reply.outcome() {
            MapOutcome::Done => Ok(reply.id),
            MapOutcome::KeyExists => Err(Error::KeyExists),
            MapOutcome::SessionClosed => Err(Error::OutcomeUnknown(reply.detail)),
            _ => Err(Error::Invalid(reply.detail)),
        }
    }

    /// By access key or by the name that the operator gave.
    pub async fn delete_access_key(&self, name: &str) -> Result<(), Error> {
        let reply = self.change_map(MapCommand::DeleteKey(KeyName { name: name.to_string() })).await?;
        match reply.outcome() {
            MapOutcome::Done => Ok(()),
            MapOutcome::NotFound => Err(Error::NoSuchAccessKey),
            _ => Err(Error::Invalid(reply.detail)),
        }
    }

    pub async fn list_access_keys(&self) -> Result<Vec<KeyRow>, Error> {
        Ok(self.refresh_map().await?.map.keys.clone())
    }

    fn random_text(&self, alphabet: &[u8], length: usize) -> String {
        let random = &self.shared.env.random;
        (0..length).map(|_| alphabet[random.below(alphabet.len() as u64) as usize] as char).collect()
    }
}

/// While a node runs an older version, nobody would take the command.
fn check_level(map: &ClusterMap) -> Result<(), Error> {
    if map.feature_level >= ROOT_LEVEL_MIN {
        return Ok(());
    }
    let members = map.nodes.iter().filter(|row| row.state() != NodeState::Removed);
    let older = members.filter(|row| row.feature_level_max < ROOT_LEVEL_MIN);
    let older: Vec<String> = older.map(|row| format!("node {} ({})", row.id, row.address)).collect();
    let why = match older.as_slice() {
        [] => "all nodes are upgraded, and it rises within moments: try again".to_string(),
        _ => format!("these run an older henge: {}; upgrade all nodes first", older.join(", ")),
    };
    let level = map.feature_level;
    Err(Error::Invalid(format!(
        "the cluster is at feature level {level}, and this needs level {ROOT_LEVEL_MIN}: {why}"
    )))
}
