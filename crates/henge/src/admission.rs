//! The member's side of joining: makes tokens, and admits those who show one.

use base::Env;
use base::env::BoxFuture;
use base::ids::ClusterId;
use bytes::Bytes;
use client::Client;
use meta::map::command::{NodeRow, NodeState};
use prost::Message;
use std::sync::Arc;
use std::time::Duration;

use crate::env::net::Admission;
use crate::env::net::hello::PROTOCOL_VERSION;
use crate::env::net::tls::Authority;
use crate::join::{self, Contact, JoinAnswer, JoinRequest, Token};

/// What a member passes on to those whom it admits.
#[derive(Clone)]
pub struct Gate {
    pub env: Env,
    pub client: Client,
    pub cluster: ClusterId,
    pub authority: Authority,
}

/// A fresh token, and when it expires (wall-clock time).
pub struct NewToken {
    pub token: Token,
    pub expires_ms: u64,
}

impl Gate {
    pub async fn create_token(&self, life: Duration) -> Result<NewToken, client::Error> {
        let fingerprint = self.authority.fingerprint().map_err(|failure| client::Error::Damaged(failure.0))?;
        let token = Token::draw(&*self.env.random, fingerprint, self.cluster);
        let secret_hash = token.secret_hash();
        let row = self.client.create_token(&token.id(), secret_hash, life).await?;
        Ok(NewToken { token, expires_ms: row.expires_ms })
    }

    async fn answer(&self, request: JoinRequest) -> JoinAnswer {
        if request.protocol != PROTOCOL_VERSION {
            return JoinAnswer::refuse(format!(
                "it speaks version {} of the protocol between nodes, and the cluster version {PROTOCOL_VERSION}: run the \
                 same henge",
                request.protocol
            ));
        }
        let row = NodeRow {
            locality: request.locality,
            address: request.advertise,
            feature_level_max: request.feature_level_max,
            ..NodeRow::default()
        };
        let secret_hash = join::hash(&request.secret);
        let redeemed = self.client.redeem_token(&request.token_id, secret_hash, request.joiner, row).await;
        let unavailable =
            |error: client::Error| JoinAnswer::refuse(format!("not now ({error}); try again in a moment"));
        let node = match redeemed {
            Ok(node) => node,
            Err(client::Error::Invalid(why)) => {
                tracing::warn!(target: "audit", token = request.token_id, why, "a node was not admitted");
                return JoinAnswer::refuse(why);
            }
            Err(error) => return unavailable(error),
        };
        let map = match self.client.refresh_map().await {
            Ok(map) => map,
            Err(error) => return unavailable(error),
        };
        let Some(root) = map.root() else {
            return JoinAnswer::refuse("not now (the cluster is being set up); try again in a moment");
        };
        let contact = |row: &NodeRow| Contact { node: row.id, address: row.address.clone() };
        let members = map.map.nodes.iter().filter(|row| row.state() != NodeState::Removed);
        tracing::info!(target: "audit", token = request.token_id, node = node.0, "a node was admitted");
        JoinAnswer {
            refused: String::new(),
            node: node.0,
            cluster: Bytes::copy_from_slice(&self.cluster.0.to_be_bytes()),
            cluster_generation: map.map.cluster_generation,
            certificate_pem: self.authority.certificate_pem.clone(),
            key_pem: self.authority.key_pem.clone(),
            contacts: members.map(contact).collect(),
            access_key: root.access_key.clone(),
            secret_key: root.secret_key.clone(),
            region: map.map.region.clone(),
            wall_ms: self.env.clock.wall().0,
        }
    }
}

impl Admission for Gate {
    fn admit(&self, request: Bytes) -> BoxFuture<Bytes> {
        let gate = Arc::new(self.clone());
        Box::pin(async move {
            let answer = match JoinRequest::decode(request) {
                Ok(request) => gate.answer(request).await,
                Err(_) => JoinAnswer::refuse("it cannot understand the request: run the same henge"),
            };
            answer.encode_to_vec().into()
        })
    }
}
