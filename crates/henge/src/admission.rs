//! The member's side of joining: makes tokens, and admits those who show one.

use base::Env;
use base::env::BoxFuture;
use base::ids::ClusterId;
use bytes::Bytes;
use client::Client;
use meta::map::command::{MapCommand, MapOutcome, NodeRow, NodeState, RedeemToken, TokenRow};
use prost::Message;
use std::sync::Arc;
use std::time::Duration;

use crate::credentials::Credentials;
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
    pub root: Credentials,
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
        let created_ms = self.env.clock.wall().0;
        let expires_ms = created_ms + u64::try_from(life.as_millis()).unwrap_or(u64::MAX / 2);
        let row = TokenRow {
            id: token.id(),
            secret_hash: token.secret_hash(),
            expires_ms,
            created_ms,
            ..TokenRow::default()
        };
        self.client.change_map_checked(MapCommand::CreateToken(row)).await?;
        Ok(NewToken { token, expires_ms })
    }

    async fn answer(&self, request: JoinRequest) -> JoinAnswer {
        if request.protocol != PROTOCOL_VERSION {
            return JoinAnswer::refuse(format!(
                "it speaks version {} of the protocol between nodes, and the cluster version {PROTOCOL_VERSION}: run the \
                 same henge",
                request.protocol
            ));
        }
        let node = NodeRow {
            locality: request.locality,
            address: request.advertise,
            feature_level_max: request.feature_level_max,
            state: NodeState::Joining as i32,
            ..NodeRow::default()
        };
        let redeem = RedeemToken {
            id: request.token_id.clone(),
            secret_hash: join::hash(&request.secret),
            now_ms: self.env.clock.wall().0,
            node: Some(node),
            joiner: request.joiner,
        };
        let unavailable =
            |error: client::Error| JoinAnswer::refuse(format!("not now ({error}); try again in a moment"));
        let reply = match self.client.change_map(MapCommand::RedeemToken(redeem)).await {
            Ok(reply) => reply,
            Err(error) => return unavailable(error),
        };
        if let Some(why) = refusal(reply.outcome(), &reply.detail) {
            tracing::warn!(target: "audit", token = request.token_id, why, "a node was not admitted");
            return JoinAnswer::refuse(why);
        }
        let map = match self.client.refresh_map().await {
            Ok(map) => map,
            Err(error) => return unavailable(error),
        };
        let contact = |row: &NodeRow| Contact { node: row.id, address: row.address.clone() };
        let members = map.map.nodes.iter().filter(|row| row.state() != NodeState::Removed);
        tracing::info!(target: "audit", token = request.token_id, node = reply.id, "a node was admitted");
        JoinAnswer {
            refused: String::new(),
            node: u32::try_from(reply.id).expect("node ids have 32 bits"),
            cluster: Bytes::copy_from_slice(&self.cluster.0.to_be_bytes()),
            cluster_generation: map.map.cluster_generation,
            certificate_pem: self.authority.certificate_pem.clone(),
            key_pem: self.authority.key_pem.clone(),
            contacts: members.map(contact).collect(),
            access_key: self.root.access_key.clone(),
            secret_key: self.root.secret_key.clone(),
            region: map.map.region.clone(),
            wall_ms: self.env.clock.wall().0,
        }
    }
}

/// What one who is not admitted is told.
fn refusal(outcome: MapOutcome, detail: &str) -> Option<String> {
    let remedy = "make a new one with `henge token create` on a member";
    match outcome {
        MapOutcome::Done => None,
        // Whether the id or the secret is wrong is nobody's business.
        MapOutcome::TokenUnknown => Some(format!("it does not know the token; {remedy}")),
        MapOutcome::TokenUsed => Some(format!("the token was used already; {remedy}")),
        MapOutcome::TokenExpired => Some(format!("the token has expired; {remedy}")),
        _ => Some(detail.to_owned()),
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
