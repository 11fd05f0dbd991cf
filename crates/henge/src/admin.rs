//! The admin port of a node: health for everybody; metrics and status for those who may look; keys, buckets,
//! tokens and nodes for whoever knows the root secret.

use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, patch, post, put};
use axum::{Json, Router};
use base::env::BoxFuture;
use base::ids::NodeId;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::mpsc;

use crate::admission::Gate;
use crate::basic_auth;
use crate::credentials::{self, Credentials, equal_in_constant_time};
use crate::events::EventView;
use crate::nodes::{DiskView, NodeView};
use crate::report::Report;
use crate::root_user::RootUser;

/// What requests of the admin port may carry.
const BODY_BYTES_MAX: usize = 64 << 10;

/// What is said of a path that this version does not know.
pub const NOTHING_HERE: &str = "there is nothing here";

/// The part of a node that the admin port shows. Filled in once the node has started.
#[derive(Clone)]
pub struct Admin {
    shared: Arc<Shared>,
}

struct Shared {
    node: OnceLock<Arc<dyn AdminNode>>,
    /// The root user until the cluster map says who it is.
    known: Credentials,
    monitoring_header: String,
    /// The admin address is a loopback address: metrics and status are open.
    local: bool,
}

/// What the admin port asks of a node.
pub trait AdminNode: Send + Sync {
    fn ready(&self) -> bool;
    fn metrics_text(&self) -> String;
    /// Asks all nodes of the cluster.
    fn report(&self) -> BoxFuture<Report>;
    /// Asks all nodes of the cluster.
    fn events(&self) -> BoxFuture<Vec<EventView>>;
    fn client(&self) -> client::Client;
    /// As the newest map that the node has says; `None`: it has none.
    fn root(&self) -> Option<RootUser>;
    /// The bytes of a backup of the cluster's metadata, in order.
    fn metadata_backup(&self) -> mpsc::Receiver<Bytes>;
    /// Who lets new nodes in, and under which cluster address this node is reached.
    fn gate(&self) -> (&Gate, &str);
}

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

impl Admin {
    /// `known`: the root user until the cluster map says who it is.
    pub fn new(known: Credentials, monitoring_token: &str, local: bool) -> Admin {
        let monitoring_header = format!("Bearer {monitoring_token}");
        Admin { shared: Arc::new(Shared { node: OnceLock::new(), known, monitoring_header, local }) }
    }

    /// From now on there is something to show.
    pub fn attach(&self, node: Arc<dyn AdminNode>) {
        assert!(self.shared.node.set(node).is_ok(), "a node is attached once, after its start");
    }

    pub fn router(self) -> Router {
        Router::new()
            .route("/health/live", get(async || "live\n"))
            .route("/health/ready", get(health_ready))
            .route("/metrics", get(metrics))
            .route("/status", get(status))
            .route("/events", get(events))
            .route("/v1/keys", get(list_keys).post(create_key))
            .route("/v1/keys/{name}", delete(delete_key))
            .route("/v1/buckets", get(list_buckets).post(create_bucket))
            .route("/v1/buckets/{name}", patch(change_bucket))
            .route("/v1/buckets/{name}/quota", get(show_quota).put(set_quota))
            .route("/v1/keys/{name}/policy", put(set_key_policy))
            .route("/v1/buckets/{name}/fences", post(reset_fence))
            .route("/v1/fences", post(next_fence))
            .route("/v1/pools", get(list_pools).post(create_pool))
            .route("/v1/root", put(set_root))
            .route("/v1/tokens", post(create_token))
            .route("/v1/nodes", get(list_nodes))
            .route("/v1/nodes/{id}/remove", post(remove_node))
            .route("/v1/nodes/{id}/drain", post(drain_node))
            .route("/v1/disks", get(list_disks))
            .route("/v1/disks/{id}/drain", post(drain_disk))
            .route("/v1/disks/{id}/remove", post(remove_disk))
            .route(crate::metadata::BACKUP_PATH, get(metadata_backup))
            .fallback(async || refuse(StatusCode::NOT_FOUND, NOTHING_HERE))
            .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
            .with_state(self)
    }

    /// The node, for callers who may look at it.
    fn for_monitoring(&self, headers: &HeaderMap) -> Result<&dyn AdminNode, Refused> {
        if !self.shared.local && !self.shows(headers, &self.shared.monitoring_header) {
            self.check_root(headers)?;
        }
        self.node()
    }

    /// The node, for callers who know the root secret. Without a map nobody can tell whether it still is one.
    fn for_root(&self, headers: &HeaderMap) -> Result<&dyn AdminNode, Refused> {
        self.check_root(headers)?;
        let node = self.node()?;
        if node.root().is_none() {
            let why = "this node has no cluster map yet, which says who the root user is; try again in a moment";
            return Err(refuse(StatusCode::SERVICE_UNAVAILABLE, why));
        }
        Ok(node)
    }

    fn root(&self) -> RootUser {
        let mapped = self.shared.node.get().and_then(|node| node.root());
        mapped.unwrap_or_else(|| RootUser { credentials: self.shared.known.clone(), changes: 0 })
    }

    fn check_root(&self, headers: &HeaderMap) -> Result<(), Refused> {
        if self.shows(headers, &basic_auth::header_value(&self.root().credentials)) {
            return Ok(());
        }
        let why = if headers.contains_key(header::AUTHORIZATION) { "those given are wrong" } else { "none were given" };
        Err(refuse(StatusCode::UNAUTHORIZED, &format!("the root credentials are needed for this, and {why}")))
    }

    fn shows(&self, headers: &HeaderMap, expected: &str) -> bool {
        let mut given = headers.get_all(header::AUTHORIZATION).iter();
        match (given.next(), given.next()) {
            (Some(one), None) => equal_in_constant_time(one.as_bytes(), expected.as_bytes()),
            _ => false,
        }
    }

    fn node(&self) -> Result<&dyn AdminNode, Refused> {
        let starting = || refuse(StatusCode::SERVICE_UNAVAILABLE, "the node is still starting; try again in a moment");
        self.shared.node.get().map(|node| &**node).ok_or_else(starting)
    }
}

/// An answer that is no success.
struct Refused {
    status: StatusCode,
    error: String,
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(Refusal { error: self.error })).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            let challenge = header::HeaderValue::from_static("Basic realm=\"henge\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

fn refuse(status: StatusCode, error: &str) -> Refused {
    Refused { status, error: error.to_owned() }
}

/// Turns an answer of the cluster into one of HTTP.
fn refuse_error(error: client::Error) -> Refused {
    use client::Error;
    let status = match error {
        Error::NoSuchBucket | Error::NoSuchAccessKey => StatusCode::NOT_FOUND,
        Error::BucketExists { .. } | Error::KeyExists => StatusCode::CONFLICT,
        Error::Invalid(_) => StatusCode::BAD_REQUEST,
        Error::NotImplemented(_) => StatusCode::NOT_IMPLEMENTED,
        Error::Full => StatusCode::INSUFFICIENT_STORAGE,
        Error::Damaged(_) => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    refuse(status, &error.to_string())
}

async fn health_ready(State(admin): State<Admin>) -> Response {
    if admin.node().is_ok_and(AdminNode::ready) {
        return "ready\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, "not ready\n").into_response()
}

async fn metadata_backup(State(admin): State<Admin>, headers: HeaderMap) -> Result<Response, Refused> {
    let pieces = admin.for_root(&headers)?.metadata_backup();
    let body = futures_util::stream::unfold(pieces, async |mut pieces| {
        let piece = pieces.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(piece), pieces))
    });
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], axum::body::Body::from_stream(body)).into_response())
}

async fn metrics(State(admin): State<Admin>, headers: HeaderMap) -> Result<Response, Refused> {
    let text = admin.for_monitoring(&headers)?.metrics_text();
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

async fn status(State(admin): State<Admin>, headers: HeaderMap) -> Result<Json<Report>, Refused> {
    Ok(Json(admin.for_monitoring(&headers)?.report().await))
}

async fn events(State(admin): State<Admin>, headers: HeaderMap) -> Result<Json<Vec<EventView>>, Refused> {
    Ok(Json(admin.for_monitoring(&headers)?.events().await))
}

async fn list_keys(State(admin): State<Admin>, headers: HeaderMap) -> Result<Json<Vec<KeyView>>, Refused> {
    let rows = admin.for_root(&headers)?.client().list_access_keys().await.map_err(refuse_error)?;
    let view = |row: client::KeyRow| KeyView {
        name: row.name,
        access_key: row.access_key,
        created_ms: row.created_ms,
        root: row.root,
        policy: row.policy,
    };
    Ok(Json(rows.into_iter().map(view).collect()))
}

async fn create_key(
    State(admin): State<Admin>,
    headers: HeaderMap,
    Json(request): Json<KeyWish>,
) -> Result<Json<NewKeyView>, Refused> {
    let node = admin.for_root(&headers)?;
    check_plain_name(&request.name)?;
    check_policy(&request.policy)?;
    let row = node.client().create_access_key(&request.name, &request.policy).await.map_err(refuse_error)?;
    tracing::info!(target: "audit", name = row.name, access_key = row.access_key, "access key created");
    Ok(Json(NewKeyView {
        name: row.name,
        access_key: row.access_key,
        secret_key: row.secret_key,
        created_ms: row.created_ms,
    }))
}

async fn set_key_policy(
    State(admin): State<Admin>,
    headers: HeaderMap,
    Path(name): Path<String>,
    Json(wish): Json<KeyPolicy>,
) -> Result<Json<Named>, Refused> {
    let node = admin.for_root(&headers)?;
    check_policy(&wish.policy)?;
    let keys = node.client().list_access_keys().await.map_err(refuse_error)?;
    if keys.iter().any(|key| key.root && (key.name == name || key.access_key == name)) {
        return Err(refuse(StatusCode::BAD_REQUEST, "the root key takes no policy: it may do everything"));
    }
    node.client().set_key_policy(&name, &wish.policy).await.map_err(refuse_error)?;
    tracing::info!(target: "audit", name, policy = !wish.policy.is_empty(), "policy of an access key changed");
    Ok(Json(Named { name }))
}

fn check_policy(policy: &str) -> Result<(), Refused> {
    if policy.is_empty() {
        return Ok(());
    }
    let read = access::Policy::of_key(policy);
    read.map(drop).map_err(|why| refuse(StatusCode::BAD_REQUEST, &format!("the policy is malformed: {why}")))
}

async fn show_quota(
    State(admin): State<Admin>,
    headers: HeaderMap,
    Path(name): Path<String>,
) -> Result<Json<QuotaView>, Refused> {
    let client = admin.for_root(&headers)?.client();
    let bucket = client.bucket(&name).await.map_err(refuse_error)?;
    quota_view(&client, &bucket).await
}

async fn set_quota(
    State(admin): State<Admin>,
    headers: HeaderMap,
    Path(name): Path<String>,
    Json(wish): Json<QuotaWish>,
) -> Result<Json<QuotaView>, Refused> {
    let client = admin.for_root(&headers)?.client();
    let bucket = client.bucket(&name).await.map_err(refuse_error)?;
    let is_some = wish.bytes_max.is_some() || wish.objects_max.is_some();
    let quota = is_some.then_some(client::Quota { bytes_max: wish.bytes_max, objects_max: wish.objects_max });
    client.set_quota(&bucket, quota).await.map_err(refuse_error)?;
    tracing::info!(target: "audit", name, ?quota, "quota of a bucket changed");
    let bucket = client.bucket(&name).await.map_err(refuse_error)?;
    quota_view(&client, &bucket).await
}

async fn quota_view(client: &client::Client, bucket: &client::BucketInfo) -> Result<Json<QuotaView>, Refused> {
    let kept = bucket.configuration(client::ConfigurationKind::Quota);
    let quota: Option<client::Quota> = kept.and_then(|kept| kept.decode());
    let used = client.usage(bucket).await.map_err(refuse_error)?;
    let counted = |number: u64| quota.is_some().then_some(number);
    Ok(Json(QuotaView {
        bytes_max: quota.and_then(|quota| quota.bytes_max),
        objects_max: quota.and_then(|quota| quota.objects_max),
        bytes: counted(used.bytes),
        objects: counted(used.objects),
        counting: quota.is_some() && !used.complete,
    }))
}

async fn delete_key(
    State(admin): State<Admin>,
    headers: HeaderMap,
    Path(name): Path<String>,
) -> Result<Json<Named>, Refused> {
    let node = admin.for_root(&headers)?;
    if name == admin.root().credentials.access_key {
        return Err(refuse(StatusCode::BAD_REQUEST, "the root key cannot be deleted"));
    }
    node.client().delete_access_key(&name).await.map_err(refuse_error)?;
    tracing::info!(target: "audit", name, "access key deleted");
    Ok(Json(Named { name }))
}

async fn list_buckets(State(admin): State<Admin>, headers: HeaderMap) -> Result<Json<Vec<BucketView>>, Refused> {
    let client = admin.for_root(&headers)?.client();
    let buckets = client.list_buckets().await.map_err(refuse_error)?;
    let region = client.region();
    Ok(Json(buckets.into_iter().map(|bucket| bucket_view(bucket, region.clone())).collect()))
}

async fn create_bucket(
    State(admin): State<Admin>,
    headers: HeaderMap,
    Json(request): Json<Named>,
) -> Result<Json<BucketView>, Refused> {
    let node = admin.for_root(&headers)?;
    check_bucket_name(&request.name)?;
    let owner = admin.root().credentials.access_key;
    let bucket = node.client().create_bucket(&request.name, &owner).await.map_err(refuse_error)?;
    tracing::info!(target: "audit", name = bucket.name, "bucket created");
    Ok(Json(bucket_view(bucket, node.client().region())))
}

async fn change_bucket(
    State(admin): State<Admin>,
    headers: HeaderMap,
    Path(name): Path<String>,
    Json(change): Json<BucketChange>,
) -> Result<Json<BucketView>, Refused> {
    let client = admin.for_root(&headers)?.client();
    let versioning = match change.versioning.as_deref() {
        Some("enabled") => Some(client::Versioning::Enabled),
        Some("suspended") => Some(client::Versioning::Suspended),
        Some(_) => return Err(refuse(StatusCode::BAD_REQUEST, "versioning is enabled or suspended")),
        None => None,
    };
    let acknowledge = change.acknowledge.as_deref().map(|name| {
        let unknown = || refuse(StatusCode::BAD_REQUEST, "acknowledge is all-strict, all, majority or one");
        client::Acknowledgement::from_name(name).ok_or_else(unknown)
    });
    if let Some(acknowledge) = acknowledge.transpose()? {
        client.set_acknowledgement(&name, acknowledge).await.map_err(refuse_error)?;
        tracing::info!(target: "audit", name, ?acknowledge, "bucket changed");
    }
    if let Some(versioning) = versioning {
        client.set_versioning(&name, versioning).await.map_err(refuse_error)?;
        tracing::info!(target: "audit", name, ?versioning, "bucket changed");
    }
    if let Some(required) = change.fence_required {
        client.require_fence(&name, required).await.map_err(refuse_error)?;
        tracing::info!(target: "audit", name, fence_required = required, "bucket changed");
    }
    Ok(Json(bucket_view(client.bucket(&name).await.map_err(refuse_error)?, client.region())))
}

async fn next_fence(
    State(admin): State<Admin>,
    headers: HeaderMap,
    Json(wish): Json<FenceWish>,
) -> Result<Json<FenceView>, Refused> {
    let client = admin.for_root(&headers)?.client();
    check_fence_key(&wish.key)?;
    let token = client.next_fence().await.map_err(refuse_error)?;
    tracing::info!(target: "audit", key = wish.key, token, "fence token handed out");
    Ok(Json(FenceView { key: wish.key, token }))
}

fn check_fence_key(key: &str) -> Result<(), Refused> {
    let valid = (1..=client::FENCE_KEY_LEN_MAX).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic());
    let message = "the key of a fence has 1 to 128 visible ASCII characters";
    if valid { Ok(()) } else { Err(refuse(StatusCode::BAD_REQUEST, message)) }
}

async fn reset_fence(
    State(admin): State<Admin>,
    headers: HeaderMap,
    Path(name): Path<String>,
    Json(floor): Json<FenceFloor>,
) -> Result<Json<FenceFloor>, Refused> {
    let client = admin.for_root(&headers)?.client();
    check_fence_key(&floor.key)?;
    client.reset_fence(&name, floor.key.clone().into(), floor.token).await.map_err(refuse_error)?;
    tracing::info!(target: "audit", name, key = floor.key, token = ?floor.token, "floor of a fence reset");
    Ok(Json(floor))
}

async fn list_pools(State(admin): State<Admin>, headers: HeaderMap) -> Result<Json<Vec<PoolView>>, Refused> {
    let client = admin.for_root(&headers)?.client();
    Ok(Json(client.pools().into_iter().map(PoolView::from).collect()))
}

async fn create_pool(
    State(admin): State<Admin>,
    headers: HeaderMap,
    Json(wish): Json<PoolWish>,
) -> Result<Json<PoolView>, Refused> {
    let client = admin.for_root(&headers)?.client();
    check_plain_name(&wish.name)?;
    if wish.copies < 2 {
        return Err(refuse(
            StatusCode::BAD_REQUEST,
            "a pool has at least 2 copies: with one, every lost disk is lost data",
        ));
    }
    let pool = client.create_pool(&wish.name, &wish.class, wish.copies).await.map_err(refuse_error)?;
    tracing::info!(target: "audit", name = pool.name, class = pool.class, copies = pool.copies, "pool created");
    Ok(Json(pool.into()))
}

impl From<client::PoolRow> for PoolView {
    fn from(row: client::PoolRow) -> PoolView {
        let client::PoolRow { id, name, copies, copies_effective, class, .. } = row;
        PoolView { id, name, class, copies, copies_effective }
    }
}

async fn set_root(
    State(admin): State<Admin>,
    headers: HeaderMap,
    Json(wish): Json<RootWish>,
) -> Result<Json<RootView>, Refused> {
    let node = admin.for_root(&headers)?;
    let wished = Credentials { access_key: wish.access_key, secret_key: wish.secret_key };
    credentials::check(&wished).map_err(|failure| refuse(StatusCode::BAD_REQUEST, &failure.0))?;
    let client = node.client();
    // Somebody else may have changed it, and this node not yet have heard of it.
    let map = client.refresh_map().await.map_err(refuse_error)?;
    admin.check_root(&headers)?;
    let before = map.root().ok_or_else(|| refuse(StatusCode::SERVICE_UNAVAILABLE, "there is no root user yet"))?;
    let Credentials { access_key, secret_key } = &wished;
    let changes = client.set_root_key(before, access_key, secret_key).await.map_err(refuse_error)?;
    tracing::info!(target: "audit", access_key, changes, "root user changed");
    Ok(Json(RootView { access_key: wished.access_key, changes }))
}

async fn create_token(
    State(admin): State<Admin>,
    headers: HeaderMap,
    Json(wish): Json<TokenWish>,
) -> Result<Json<NewTokenView>, Refused> {
    const LIFE_S_MAX: u64 = 365 * 24 * 60 * 60;
    let node = admin.for_root(&headers)?;
    if !(1..=LIFE_S_MAX).contains(&wish.expires_s) {
        return Err(refuse(StatusCode::BAD_REQUEST, "a token expires after a second to a year"));
    }
    let (gate, join) = node.gate();
    let made = gate.create_token(Duration::from_secs(wish.expires_s)).await.map_err(refuse_error)?;
    tracing::info!(target: "audit", id = made.token.id(), expires_s = wish.expires_s, "join token created");
    let only_here = join.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_loopback());
    let note = format!(
        "this node is reached at {join}, from this machine only; to have others join, start it with --cluster on an address \
         that they reach"
    );
    Ok(Json(NewTokenView {
        token: made.token.to_text(),
        expires_ms: made.expires_ms,
        join: join.to_owned(),
        notes: if only_here { vec![note] } else { vec![] },
    }))
}

async fn list_nodes(State(admin): State<Admin>, headers: HeaderMap) -> Result<Json<Vec<NodeView>>, Refused> {
    let nodes = admin.for_root(&headers)?.client().nodes().await.map_err(refuse_error)?;
    Ok(Json(nodes.into_iter().map(NodeView::from).collect()))
}

async fn remove_node(
    State(admin): State<Admin>,
    headers: HeaderMap,
    Path(id): Path<u32>,
    Json(wish): Json<RemoveNode>,
) -> Result<Json<NodeView>, Refused> {
    let client = admin.for_root(&headers)?.client();
    client.remove_node(NodeId(id), wish.lost).await.map_err(refuse_error)?;
    let nodes = client.nodes().await.map_err(refuse_error)?;
    let gone = || refuse(StatusCode::NOT_FOUND, "the node is gone from the map");
    let node = nodes.into_iter().map(NodeView::from).find(|node| node.id == id).ok_or_else(gone)?;
    tracing::info!(target: "audit", id, lost = wish.lost, state = node.state, "node removal");
    Ok(Json(node))
}

async fn drain_node(
    State(admin): State<Admin>,
    headers: HeaderMap,
    Path(id): Path<u32>,
    Json(wish): Json<Drain>,
) -> Result<Json<NodeView>, Refused> {
    let client = admin.for_root(&headers)?.client();
    client.drain_node(NodeId(id), !wish.undo).await.map_err(refuse_error)?;
    let nodes = client.nodes().await.map_err(refuse_error)?;
    let gone = || refuse(StatusCode::NOT_FOUND, "the node is gone from the map");
    let node = nodes.into_iter().map(NodeView::from).find(|node| node.id == id).ok_or_else(gone)?;
    tracing::info!(target: "audit", id, undo = wish.undo, state = node.state, "node drain");
    Ok(Json(node))
}

async fn list_disks(State(admin): State<Admin>, headers: HeaderMap) -> Result<Json<Vec<DiskView>>, Refused> {
    let disks = admin.for_root(&headers)?.client().disks().await.map_err(refuse_error)?;
    Ok(Json(disks.into_iter().map(DiskView::from).collect()))
}

async fn drain_disk(
    State(admin): State<Admin>,
    headers: HeaderMap,
    Path(id): Path<String>,
    Json(wish): Json<Drain>,
) -> Result<Json<DiskView>, Refused> {
    let client = admin.for_root(&headers)?.client();
    let disk = client.drain_disk(&id, !wish.undo).await.map_err(refuse_error)?;
    tracing::info!(target: "audit", id, undo = wish.undo, "disk drain");
    Ok(Json(disk.into()))
}

async fn remove_disk(
    State(admin): State<Admin>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Result<Json<DiskView>, Refused> {
    let client = admin.for_root(&headers)?.client();
    let disk = client.remove_disk(&id).await.map_err(refuse_error)?;
    tracing::info!(target: "audit", id, "disk removed");
    Ok(Json(disk.into()))
}

fn bucket_view(bucket: client::BucketInfo, region: String) -> BucketView {
    let fence_required = bucket.requires_fence();
    let acknowledge = bucket.acknowledgement.name().to_owned();
    let versioning = match bucket.versioning {
        client::Versioning::Off => "off",
        client::Versioning::Enabled => "enabled",
        client::Versioning::Suspended => "suspended",
    };
    BucketView {
        name: bucket.name,
        owner: bucket.owner,
        created_ms: bucket.created_ms,
        region,
        versioning: versioning.into(),
        fence_required,
        acknowledge,
    }
}

/// Of keys and pools.
fn check_plain_name(name: &str) -> Result<(), Refused> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if (1..=64).contains(&name.len()) && name.bytes().all(plain) {
        return Ok(());
    }
    Err(refuse(StatusCode::BAD_REQUEST, "the name has 1 to 64 letters, digits, '-', '_' and '.'"))
}

/// The rules of S3 for names that also work as host names.
fn check_bucket_name(name: &str) -> Result<(), Refused> {
    if gateway_s3::is_bucket_name(name) {
        return Ok(());
    }
    let rule = "the name of a bucket has 3 to 63 lower-case letters, digits, '-' and '.', and looks like a host name";
    Err(refuse(StatusCode::BAD_REQUEST, rule))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use axum::http::Request;
    use tower::ServiceExt;

    /// With the secret that its map has for the root user.
    struct Fake(Option<&'static str>);

    fn root_with(secret: &str) -> Credentials {
        Credentials { access_key: "root".into(), secret_key: secret.into() }
    }

    impl AdminNode for Fake {
        fn ready(&self) -> bool {
            true
        }
        fn metrics_text(&self) -> String {
            "henge_up 1\n".into()
        }
        fn report(&self) -> BoxFuture<Report> {
            let report = Report {
                version: 1,
                verdict: crate::report::Verdict::AtRisk,
                reasons: vec![],
                doing: vec![],
                todo: vec![],
                epoch: 1,
                nodes: vec![],
                groups: vec![],
                chunks: Default::default(),
                repair: Default::default(),
            };
            Box::pin(std::future::ready(report))
        }
        fn events(&self) -> BoxFuture<Vec<EventView>> {
            Box::pin(std::future::ready(vec![]))
        }
        fn metadata_backup(&self) -> mpsc::Receiver<Bytes> {
            mpsc::channel(1).1
        }
        fn client(&self) -> client::Client {
            unreachable!("no test of authorization gets this far")
        }
        fn root(&self) -> Option<RootUser> {
            self.0.map(|secret| RootUser { credentials: root_with(secret), changes: 1 })
        }
        fn gate(&self) -> (&Gate, &str) {
            unreachable!("no test of authorization gets this far")
        }
    }

    fn admin(local: bool) -> Admin {
        let root = Credentials { access_key: "root".into(), secret_key: "0123456789".into() };
        Admin::new(root, "a-token-to-look", local)
    }

    async fn ask(admin: &Admin, method: &str, path: &str, authorization: &[&str]) -> StatusCode {
        let mut request = Request::builder().method(method).uri(path).header("content-type", "application/json");
        for value in authorization {
            request = request.header("authorization", *value);
        }
        let body = r#"{"name":"!","policy":"{}","versioning":"maybe","key":"","expires_s":0,"lost":true,"undo":false,
            "class":"","copies":0,"access_key":"a/b","secret_key":"0123456789"}"#;
        let body = Body::from(body);
        admin.clone().router().oneshot(request.body(body).unwrap()).await.unwrap().status()
    }

    #[tokio::test]
    async fn health_is_open_and_tells_starting_from_ready() {
        let admin = admin(false);
        assert_eq!(ask(&admin, "GET", "/health/live", &[]).await, StatusCode::OK);
        assert_eq!(ask(&admin, "GET", "/health/ready", &[]).await, StatusCode::SERVICE_UNAVAILABLE);
        admin.attach(Arc::new(Fake(Some("0123456789"))));
        assert_eq!(ask(&admin, "GET", "/health/ready", &[]).await, StatusCode::OK);
        assert_eq!(ask(&admin, "GET", "/elsewhere", &[]).await, StatusCode::NOT_FOUND);
    }

    #[tokio::test]
    async fn looking_needs_rights_where_others_can_connect() {
        let root =
            basic_auth::header_value(&Credentials { access_key: "root".into(), secret_key: "0123456789".into() });
        for path in ["/metrics", "/status", "/events"] {
            let far = admin(false);
            far.attach(Arc::new(Fake(Some("0123456789"))));
            assert_eq!(ask(&far, "GET", path, &[]).await, StatusCode::UNAUTHORIZED);
            assert_eq!(ask(&far, "GET", path, &["Bearer wrong"]).await, StatusCode::UNAUTHORIZED);
            assert_eq!(ask(&far, "GET", path, &["Bearer a-token-to-look", &root]).await, StatusCode::UNAUTHORIZED);
            assert_eq!(ask(&far, "GET", path, &["Bearer a-token-to-look"]).await, StatusCode::OK);
            assert_eq!(ask(&far, "GET", path, &[&root]).await, StatusCode::OK);
            let near = admin(true);
            near.attach(Arc::new(Fake(Some("0123456789"))));
            assert_eq!(ask(&near, "GET", path, &[]).await, StatusCode::OK);
        }
    }

    #[tokio::test]
    async fn changing_always_needs_the_root_secret() {
        let admin = admin(true);
        admin.attach(Arc::new(Fake(Some("0123456789"))));
        let root =
            basic_auth::header_value(&Credentials { access_key: "root".into(), secret_key: "0123456789".into() });
        let wrong =
            basic_auth::header_value(&Credentials { access_key: "root".into(), secret_key: "0123456780".into() });
        for (method, path) in [
            ("GET", "/v1/keys"),
            ("POST", "/v1/keys"),
            ("PUT", "/v1/keys/k/policy"),
            ("GET", "/v1/buckets/b/quota"),
            ("PUT", "/v1/buckets/b/quota"),
            ("DELETE", "/v1/keys/root"),
            ("GET", "/v1/buckets"),
            ("POST", "/v1/buckets"),
            ("PATCH", "/v1/buckets/b"),
            ("POST", "/v1/fences"),
            ("POST", "/v1/buckets/b/fences"),
            ("GET", "/v1/pools"),
            ("POST", "/v1/pools"),
            ("PUT", "/v1/root"),
            ("POST", "/v1/tokens"),
            ("GET", "/v1/nodes"),
            ("POST", "/v1/nodes/1/remove"),
            ("POST", "/v1/nodes/1/drain"),
            ("GET", "/v1/disks"),
            ("POST", "/v1/disks/ab/drain"),
            ("POST", "/v1/disks/ab/remove"),
        ] {
            for headers in [&[][..], &["Bearer a-token-to-look"], &["Basic "], &[&wrong], &[&root, &root]] {
                assert_eq!(ask(&admin, method, path, headers).await, StatusCode::UNAUTHORIZED, "{method} {path}");
            }
        }
        // With the secret, the next check speaks.
        assert_eq!(ask(&admin, "POST", "/v1/keys", &[&root]).await, StatusCode::BAD_REQUEST);
        assert_eq!(ask(&admin, "POST", "/v1/buckets", &[&root]).await, StatusCode::BAD_REQUEST);
        assert_eq!(ask(&admin, "DELETE", "/v1/keys/root", &[&root]).await, StatusCode::BAD_REQUEST);
        assert_eq!(ask(&admin, "POST", "/v1/tokens", &[&root]).await, StatusCode::BAD_REQUEST);
        assert_eq!(ask(&admin, "PUT", "/v1/root", &[&root]).await, StatusCode::BAD_REQUEST);
    }

    #[tokio::test]
    async fn the_map_says_who_the_root_user_is() {
        let [given, mapped] =
            ["0123456789", "another-secret"].map(|secret| basic_auth::header_value(&root_with(secret)));
        let moved = admin(false);
        moved.attach(Arc::new(Fake(Some("another-secret"))));
        for (header, monitoring, root) in [
            (&given, StatusCode::UNAUTHORIZED, StatusCode::UNAUTHORIZED),
            (&mapped, StatusCode::OK, StatusCode::BAD_REQUEST),
        ] {
            assert_eq!(ask(&moved, "GET", "/status", &[header]).await, monitoring);
            assert_eq!(ask(&moved, "POST", "/v1/keys", &[header]).await, root);
        }
        // Before there is a map, whoever has what the node was given may look, and nobody may change anything.
        let alone = admin(false);
        alone.attach(Arc::new(Fake(None)));
        assert_eq!(ask(&alone, "GET", "/status", &[&given]).await, StatusCode::OK);
        assert_eq!(ask(&alone, "POST", "/v1/keys", &[&given]).await, StatusCode::SERVICE_UNAVAILABLE);
    }

    #[test]
    fn bucket_names_follow_the_rules() {
        for good in ["abc", "a-b.c", "1bucket"] {
            assert!(check_bucket_name(good).is_ok(), "{good}");
        }
        for bad in ["", "ab", "Abc", "a..b", "-abc", "abc-", "192.168.0.1", "a_b"] {
            assert!(check_bucket_name(bad).is_err(), "{bad}");
        }
    }
}
