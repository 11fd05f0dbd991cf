//! Who a node is when it starts: the founder of a cluster, a member that comes back, or one that joins; and what keeps
//! its membership current while it runs.

use base::Env;
use base::env::{Disk, RandomExt};
use base::ids::{ClusterId, NodeId};
use meta::map::command::{ClusterMap, NodeState};
use node::offline::NodeIdentity;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use store::Engine;

use crate::cli::ServerArgs;
use crate::cluster_file::ClusterFile;
use crate::credentials::{self, Credentials};
use crate::env::net::hello::{Club, PROTOCOL_VERSION};
use crate::env::net::tls::{self, Authority, CERTIFICATE_LIFE};
use crate::env::{FIRST_NODE, RealNet, system_random};
use crate::failure::{Context, Failure};
use crate::join::{self, JoinAnswer, JoinRequest, Token};
use crate::private_file;

/// Environment variable with the token of one who joins.
pub const TOKEN_VARIABLE: &str = "HENGE_JOIN_TOKEN";

/// Beyond this, the clocks of a joining node and of a member differ so much that the operator should know.
const CLOCK_DIFFERENCE_MAX: Duration = Duration::from_secs(60);

/// How often a running node compares itself with the map.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(1);

/// What is known of a node before it starts.
pub struct Standing {
    pub node: NodeId,
    /// `None`: it founds a cluster, whose id is drawn as it starts.
    pub club: Option<Club>,
    pub authority: Authority,
    /// The cluster's region; `None` for the founder, who says it.
    pub region: Option<String>,
}

/// What decides who a node is.
pub struct Applicant<'a> {
    pub args: &'a ServerArgs,
    pub data: &'a Path,
    pub data_disk: &'a dyn Disk,
    pub disks: &'a [Arc<dyn Disk>],
    /// This node's cluster port.
    pub own: SocketAddr,
}

impl Applicant<'_> {
    pub async fn stand(&self) -> Result<Standing, Failure> {
        let identity = node::offline::identity(self.data_disk).await;
        let identity = identity.map_err(|error| Failure(format!("data directory: {error}")))?;
        match (identity, &self.args.join) {
            (Some(identity), join) => {
                if let Some(address) = join {
                    self.check_rejoin(identity.cluster, identity.node, address)?;
                }
                self.come_back(&identity)
            }
            (None, Some(address)) => self.join(address).await,
            (None, None) => self.found(),
        }
    }

    fn found(&self) -> Result<Standing, Failure> {
        let authority = match Authority::load(self.data)? {
            Some(authority) => authority,
            None => self.make_authority()?,
        };
        Ok(Standing { node: FIRST_NODE, club: None, authority, region: None })
    }

    fn make_authority(&self) -> Result<Authority, Failure> {
        let authority = Authority::make()?;
        authority.store(self.data)?;
        Ok(authority)
    }

    fn come_back(&self, identity: &NodeIdentity) -> Result<Standing, Failure> {
        let authority = match Authority::load(self.data)? {
            Some(authority) => authority,
            // The founder of a cluster from before there was an authority.
            None if !identity.joined => self.make_authority()?,
            None => {
                return Err(Failure(format!(
                    "{} is missing: copy it from another node of the cluster",
                    tls::directory_in(self.data).display()
                )));
            }
        };
        let generation = load_generation(self.data)?;
        let region = match identity.joined {
            true => ClusterFile::read(self.data)?.map(|file| file.region),
            false => None,
        };
        let club = Some(Club { cluster: identity.cluster, generation });
        Ok(Standing { node: identity.node, club, authority, region })
    }

    /// A directory that has joined needs no token, and joins no other cluster.
    fn check_rejoin(&self, cluster: ClusterId, node: NodeId, address: &str) -> Result<(), Failure> {
        let data = self.data.display();
        if let Some(token) = self.token()?
            && token.cluster != cluster
        {
            return Err(Failure(format!(
                "{data} belongs to cluster {cluster}, and the token to cluster {}: clusters never merge; join with an empty \
                 --data",
                token.cluster
            )));
        }
        println!("{data} is node {node} of its cluster already: --join {address} is not needed");
        Ok(())
    }

    /// From the environment or `--token-file`.
    fn token(&self) -> Result<Option<Token>, Failure> {
        let text = match (&self.args.token_file, std::env::var(TOKEN_VARIABLE)) {
            (Some(path), _) => {
                let cannot = || format!("--token-file {} cannot be read", path.display());
                private_file::read(path)
                    .context(cannot)?
                    .ok_or_else(|| Failure(format!("{}: no such file", cannot())))?
            }
            (None, Ok(text)) if !text.is_empty() => text,
            (None, Err(std::env::VarError::NotUnicode(_))) => "".into(),
            (None, _) => return Ok(None),
        };
        Token::parse(&text).map(Some)
    }

    async fn join(&self, address: &str) -> Result<Standing, Failure> {
        let token = self.token()?.ok_or_else(|| {
            Failure(format!(
                "--join needs a token: make one with `henge token create` on a member, and give it in {TOKEN_VARIABLE} or \
                 with --token-file"
            ))
        })?;
        self.check_disks_are_new().await?;
        // Nobody else may join with this directory meanwhile.
        let _lock = self.data_disk.lock().context(|| format!("{} is in use by another henge", self.data.display()))?;
        let secret = self.joiner_secret()?;
        let request = JoinRequest {
            protocol: PROTOCOL_VERSION,
            token_id: token.id(),
            secret: token.secret(),
            joiner: join::hash(secret.as_bytes()).to_vec().into(),
            advertise: self.advertise()?,
            locality: self.args.locality.clone(),
            feature_level_max: meta::group::FEATURE_LEVEL,
        };
        let answer = join::ask(address, self.own, &token, request).await?;
        let authority = Authority { certificate_pem: answer.certificate_pem.clone(), key_pem: answer.key_pem.clone() };
        authority.check().context(|| format!("the member at {address} sends an unusable authority"))?;
        if authority.fingerprint()? != token.fingerprint {
            return Err(Failure(format!("the member at {address} sends another authority than the token's")));
        }
        self.settle(&answer, &authority).await?;
        warn_of_clocks(answer.wall_ms);
        println!("joined cluster {} as node {}", token.cluster, answer.node);
        let club = Club { cluster: token.cluster, generation: answer.cluster_generation };
        Ok(Standing { node: NodeId(answer.node), club: Some(club), authority, region: Some(answer.region) })
    }

    /// Makes the directory that of a member, durably; the identity comes last, so that a crash before it changes nothing.
    async fn settle(&self, answer: &JoinAnswer, authority: &Authority) -> Result<(), Failure> {
        let root = Credentials { access_key: answer.access_key.clone(), secret_key: answer.secret_key.clone() };
        let given = credentials::from_environment()?;
        if given.as_ref().is_some_and(|given| *given != root) {
            return Err(Failure(format!(
                "{} and {} are not the cluster's root credentials: unset them, and start again with the same token",
                credentials::USER_VARIABLE,
                credentials::PASSWORD_VARIABLE
            )));
        }
        authority.store(self.data)?;
        store_generation(self.data, answer.cluster_generation)?;
        if given.is_none() {
            credentials::store(self.data, &root)?;
        }
        let cluster = answer.cluster.as_ref().try_into().context(|| "the member's answer is malformed".into())?;
        let cluster = ClusterId(u128::from_be_bytes(cluster));
        let contacts: Vec<(NodeId, String)> = answer
            .contacts
            .iter()
            .filter(|contact| contact.node != answer.node)
            .map(|contact| (NodeId(contact.node), contact.address.clone()))
            .collect();
        node::join_identity(self.data_disk, cluster, NodeId(answer.node), &contacts)
            .await
            .context(|| format!("{} cannot be made the directory of a member", self.data.display()))
    }

    /// Before the token is used up: what holds data of a cluster cannot be brought into another.
    async fn check_disks_are_new(&self) -> Result<(), Failure> {
        for disk in self.disks {
            let place = disk.describe();
            let found = Engine::read_identity(disk).await.context(|| format!("disk {place} cannot be read"))?;
            if let Some(found) = found {
                return Err(Failure(format!(
                    "disk {place} belongs to node {} of cluster {}: clusters never merge; give an empty directory",
                    found.node, found.cluster
                )));
            }
        }
        Ok(())
    }

    /// What tells the cluster that it is the same joiner that asks again.
    fn joiner_secret(&self) -> Result<String, Failure> {
        use std::os::unix::fs::DirBuilderExt;
        let directory = tls::directory_in(self.data);
        let path = directory.join("joiner");
        let cannot = || format!("{} cannot be written", path.display());
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory).context(cannot)?;
        if let Some(secret) = private_file::read(&path).context(cannot)?.filter(|secret| secret.len() >= 64) {
            return Ok(secret);
        }
        let mut raw = [0; 32];
        system_random().fill(&mut raw);
        let secret = join::hex(&raw);
        private_file::replace(&path, secret.as_bytes()).context(cannot)?;
        Ok(secret)
    }

    /// HOST:PORT for others.
    pub fn advertise(&self) -> Result<String, Failure> {
        match &self.args.advertise {
            Some(given) => Ok(given.clone()),
            None if self.own.ip().is_unspecified() => Err(Failure(format!(
                "--cluster {} is no address that others could connect to; say with --advertise HOST:PORT where they reach \
                 this node",
                self.own
            ))),
            None => Ok(self.own.to_string()),
        }
    }
}

fn warn_of_clocks(member_wall_ms: u64) {
    let now_ms = u64::try_from(since_epoch().as_millis()).unwrap_or(u64::MAX);
    let difference = Duration::from_millis(now_ms.abs_diff(member_wall_ms));
    if difference > CLOCK_DIFFERENCE_MAX {
        tracing::warn!(
            "the clock of this machine and that of the member differ by {} s: set them right; nothing depends on it but \
             LastModified and the expiry of tokens",
            difference.as_secs()
        );
    }
}

fn since_epoch() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}

fn generation_file(data: &Path) -> PathBuf {
    tls::directory_in(data).join("generation")
}

/// The cluster's generation when it was last heard of; 0 before any recovery.
pub fn load_generation(data: &Path) -> Result<u32, Failure> {
    let path = generation_file(data);
    let cannot = || format!("{} is no generation", path.display());
    match private_file::read(&path).context(cannot)? {
        Some(text) => text.trim().parse().context(cannot),
        None => Ok(0),
    }
}

pub fn store_generation(data: &Path, generation: u32) -> Result<(), Failure> {
    let path = generation_file(data);
    private_file::replace(&path, format!("{generation}\n").as_bytes())
        .context(|| format!("{} cannot be written", path.display()))
}

/// Brings a node into the network of its cluster.
pub fn enter(
    net: &RealNet,
    node: NodeId,
    club: Club,
    authority: &Authority,
    listener: tokio::net::TcpListener,
    advertise: String,
    bulk_plaintext: bool,
) -> Result<(), Failure> {
    let tls = authority.issue(node, CERTIFICATE_LIFE, since_epoch())?;
    net.enter(club, tls, listener, advertise, bulk_plaintext);
    Ok(())
}

/// Looks at the map until which a new authority, which nodes announce at their start, is known.
const AUTHORITY_PATIENCE: u32 = 30;

/// Follows the map for as long as the node runs: who was removed, which generation the cluster has; and renews the
/// node's certificate in time.
pub async fn follow(net: Arc<RealNet>, env: Env, standing: Standing, client: client::Client, data: PathBuf) {
    let Standing { node, authority, .. } = standing;
    let mut renew_at = env.now() + CERTIFICATE_LIFE * 2 / 3;
    // An older map than what was known here lowers nothing.
    let mut generation = load_generation(&data).unwrap_or(0);
    net.raise_generation(generation);
    let mut seen_other = 0;
    loop {
        env.sleep(FOLLOW_INTERVAL).await;
        let map = client.map();
        let other = map.map.authority.as_ref().is_some_and(|other| other.certificate_pem != authority.certificate_pem);
        seen_other = if other { seen_other + 1 } else { 0 };
        if seen_other == AUTHORITY_PATIENCE {
            tracing::error!(
                "{} is not the certificate authority that the cluster's map names: if this node alone has another one, copy it \
                 from the others and start again; if all were given a new one, upgrade the nodes that run an older henge",
                tls::directory_in(&data).display()
            );
        }
        net.expel(&removed(&map.map));
        if map.map.cluster_generation > generation {
            generation = map.map.cluster_generation;
            net.raise_generation(generation);
            if let Err(error) = store_generation(&data, generation) {
                tracing::error!("{error}");
            }
        }
        if env.now() >= renew_at {
            renew_at = env.now() + CERTIFICATE_LIFE * 2 / 3;
            match authority.issue(node, CERTIFICATE_LIFE, since_epoch()) {
                Ok(tls) => net.renew_tls(tls),
                Err(error) => tracing::error!("{error}"),
            }
        }
    }
}

fn removed(map: &ClusterMap) -> BTreeSet<NodeId> {
    map.nodes.iter().filter(|row| row.state() == NodeState::Removed).map(|row| NodeId(row.id)).collect()
}
