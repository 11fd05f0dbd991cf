//! The admin port of a node: health for everybody; metrics and status for those who may look; keys, buckets,
//! tokens and nodes for whoever knows the root secret.

mod buckets;
mod keys;
mod nodes;
mod views;

pub use views::*;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, patch, post, put};
use axum::{Json, Router};
use base::env::BoxFuture;
use bytes::Bytes;
use std::sync::{Arc, OnceLock};
use tokio::sync::mpsc;

use buckets::{
    change_bucket, create_bucket, create_pool, list_buckets, list_pools, next_fence, reset_fence, set_quota, show_quota,
};
use keys::{create_key, delete_key, list_keys, set_key_policy, set_root};
use nodes::{create_token, drain_disk, drain_node, list_disks, list_nodes, remove_disk, remove_node};

use crate::admission::Gate;
use crate::basic_auth;
use crate::credentials::{Credentials, equal_in_constant_time};
use crate::events::EventView;
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

/// Of keys and pools.
fn check_plain_name(name: &str) -> Result<(), Refused> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if (1..=64).contains(&name.len()) && name.bytes().all(plain) {
        return Ok(());
    }
    Err(refuse(StatusCode::BAD_REQUEST, "the name has 1 to 64 letters, digits, '-', '_' and '.'"))
}

#[cfg(test)]
mod tests {
    use super::buckets::check_bucket_name;
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
