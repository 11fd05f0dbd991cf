//! A cluster of child processes on this machine: how its nodes are started for the first time and again, for `dev` and
//! `demo`. Each node has its directory below the cluster's; the first one founds the cluster, the others join with tokens.

use http::Method;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use crate::admin::{NewTokenView, TokenWish};
use crate::admin_commands::ask;
use crate::cluster_file::{ClusterFile, ClusterNode};
use crate::failure::Failure;
use crate::processes::{self, Join, ServerSpec};
use crate::report::Report;
use crate::target::Target;

/// More than a child needs to use its token.
const TOKEN_LIFE: Duration = Duration::from_secs(600);

/// How often a state that cannot be waited for is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Whether the directory is that of a node: it has founded or joined a cluster.
pub fn is_member(data: &Path) -> bool {
    data.join("node").exists()
}

/// The right to join, from any node of `cluster` that answers.
pub async fn invite(cluster: &ClusterFile) -> Result<Join, Failure> {
    let wish = TokenWish { expires_s: TOKEN_LIFE.as_secs() };
    let made: NewTokenView = ask(&target(cluster), Method::POST, "/v1/tokens", Some(&wish)).await?;
    Ok(Join { address: made.join, token: made.token })
}

/// What the cluster says of itself.
pub async fn status(cluster: &ClusterFile) -> Result<Report, Failure> {
    ask(&target(cluster), Method::GET, "/status", None::<&()>).await
}

/// Waits until `reached` says so of the status; how long that took.
pub async fn wait_for_status(
    cluster: &ClusterFile,
    patience: Duration,
    what: &str,
    reached: impl Fn(&Report) -> bool,
) -> Result<Duration, Failure> {
    let began = Instant::now();
    loop {
        let report = status(cluster).await;
        if report.as_ref().is_ok_and(&reached) {
            return Ok(began.elapsed());
        }
        if began.elapsed() > patience {
            let why = report.map_or_else(|failure| failure.0, |report| report.reasons.join("; "));
            return Err(Failure(format!("{what} did not happen within {} s: {why}", patience.as_secs())));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Starts a node and waits until it serves.
pub async fn start(spec: &ServerSpec) -> Result<(Child, ClusterFile), Failure> {
    let mut child = processes::spawn_server(spec)?;
    match processes::wait_ready(&mut child, spec).await {
        Ok(file) => Ok((child, file)),
        Err(failure) => {
            // It may have ended already.
            let _ = child.kill().and_then(|()| child.wait());
            Err(failure)
        }
    }
}

/// What is known of a whole cluster, put together from what each node says of itself; by number of the node.
pub fn add_node(cluster: &mut ClusterFile, number: u32, own_file: ClusterFile) {
    // The node knows itself as the first of its own file.
    let started = own_file.nodes.into_iter().next().map(|node| ClusterNode { id: number, ..node });
    cluster.nodes.retain(|node| node.id != number);
    cluster.nodes.extend(started);
    cluster.nodes.sort_by_key(|node| node.id);
    if own_file.root_changes >= cluster.root_changes {
        cluster.access_key = own_file.access_key;
        cluster.secret_key = own_file.secret_key;
        cluster.root_changes = own_file.root_changes;
    }
    cluster.region = own_file.region;
}

fn target(cluster: &ClusterFile) -> Target {
    Target {
        admins: cluster.nodes.iter().map(|node| node.admin.clone()).collect(),
        s3: cluster.nodes.iter().map(|node| node.s3.clone()).collect(),
        region: cluster.region.clone(),
        credentials: Some(cluster.credentials()),
    }
}
