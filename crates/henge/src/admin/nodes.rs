//! Nodes, their disks, and tokens for new ones.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use base::ids::NodeId;
use std::net::SocketAddr;
use std::time::Duration;

use super::{Admin, Drain, NewTokenView, Refused, RemoveNode, TokenWish, refuse, refuse_error};
use crate::nodes::{DiskView, NodeView};

pub(super) async fn create_token(
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

pub(super) async fn list_nodes(State(admin): State<Admin>, headers: HeaderMap) -> Result<Json<Vec<NodeView>>, Refused> {
    let nodes = admin.for_root(&headers)?.client().nodes().await.map_err(refuse_error)?;
    Ok(Json(nodes.into_iter().map(NodeView::from).collect()))
}

pub(super) async fn remove_node(
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

pub(super) async fn drain_node(
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

pub(super) async fn list_disks(State(admin): State<Admin>, headers: HeaderMap) -> Result<Json<Vec<DiskView>>, Refused> {
    let disks = admin.for_root(&headers)?.client().disks().await.map_err(refuse_error)?;
    Ok(Json(disks.into_iter().map(DiskView::from).collect()))
}

pub(super) async fn drain_disk(
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

pub(super) async fn remove_disk(
    State(admin): State<Admin>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Result<Json<DiskView>, Refused> {
    let client = admin.for_root(&headers)?.client();
    let disk = client.remove_disk(&id).await.map_err(refuse_error)?;
    tracing::info!(target: "audit", id, "disk removed");
    Ok(Json(disk.into()))
}
