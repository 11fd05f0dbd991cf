//! Access keys and the root user.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};

use super::{
    Admin, KeyPolicy, KeyView, KeyWish, Named, NewKeyView, Refused, RootView, RootWish, check_plain_name, refuse,
    refuse_error,
};
use crate::credentials::{self, Credentials};

pub(super) async fn list_keys(State(admin): State<Admin>, headers: HeaderMap) -> Result<Json<Vec<KeyView>>, Refused> {
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

pub(super) async fn create_key(
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

pub(super) async fn set_key_policy(
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

pub(super) async fn delete_key(
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

pub(super) async fn set_root(
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
