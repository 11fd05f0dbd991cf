//! The state of a replica, fetched page by page from the node that offered a snapshot, and put in the place of what
//! was there.
//!
//! The order makes every crash safe. First the group's row says, durably, that the state is incomplete; then the old
//! rows go and the new ones come; last, in one transaction, the new row of the group, which says that the log must be
//! reset; then a flush. What a restart finds tells how far it came ([`meta::group::Install`]).

use base::Env;
use base::env::{Channel, MonoTime};
use base::ids::{GroupId, LogIndex, NodeId, Term};
use base::plant::{self, Plant};
use bytes::Bytes;
use client::wire::{self, Answer, Ask, Request, SnapshotPage, Told};
use meta::group::{self, GroupState, Install};
use meta::view::{View, ViewError};
use protocol::raft::{Configuration, Message};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use store::kv::{Change, Kv, KvError, KvRead, LsmKv};

use crate::machine::KvView;
use crate::replicas::erase_all;

/// Rows and bytes of one page.
pub const PAGE_ROWS: usize = 4096;
const PAGE_BYTES: usize = 4 << 20;
/// How long a page may take, and how often it is asked for.
const PAGE_MAX: Duration = Duration::from_secs(2);
const PAGE_ATTEMPTS: usize = 4;
/// Snapshots that one node serves at a time, and how long one is kept that nobody asks for.
const SNAPSHOTS_MAX: usize = 16;
const SNAPSHOT_IDLE: Duration = Duration::from_secs(20);

/// What is to be fetched.
pub struct Fetch {
    pub source: Source,
    pub kv: Arc<LsmKv>,
    /// The message that offered the snapshot.
    pub message: Message,
    pub at_least: LogIndex,
}

/// Whose rows are read.
pub struct Source {
    pub env: Env,
    pub group: GroupId,
    pub from: NodeId,
    /// The replica is being stopped: the rows are not touched any more.
    pub cancelled: Arc<AtomicBool>,
}

impl Source {
    fn check(&self) -> Result<(), String> {
        if self.cancelled.load(Ordering::Acquire) { Err("the replica is being stopped".into()) } else { Ok(()) }
    }
}

/// What the key-value store holds now.
pub struct Installed {
    pub index: LogIndex,
    pub term: Term,
    pub configuration: Configuration,
    pub message: Message,
}

/// Why no state came.
pub struct Failed {
    pub why: String,
    /// What was there before is not whole any more.
    pub state_is_gone: bool,
    /// Damage holds the place of the old rows, together with others.
    pub damaged: bool,
    /// The other voters are at work, and enough: it is given up for good.
    pub spare: bool,
}

impl Failed {
    fn before(why: String) -> Failed {
        Failed { why, state_is_gone: false, damaged: false, spare: false }
    }
}

/// While rows are replaced.
impl From<String> for Failed {
    fn from(why: String) -> Failed {
        Failed { why, state_is_gone: true, damaged: false, spare: false }
    }
}

pub async fn fetch(fetch: Fetch) -> Result<Installed, Failed> {
    let (first, state, configuration) = begin(&fetch).await.map_err(Failed::before)?;
    replace(fetch, first, state, configuration).await
}

/// Succeeds when the other node's replica has its whole state and can read every row of it. Answers what that one's row said.
/// Nothing is kept. Fails at once when it has not come as far as `at_least`.
pub async fn read_through(source: &Source, at_least: LogIndex) -> Result<GroupState, String> {
    let mut now = page(source, 0, Bytes::new(), false).await?;
    let state = group::decode(&now.state)?;
    if LogIndex(state.applied_index) < at_least || !state.is_supported() {
        return Err("it is behind, or of a newer version".into());
    }
    while !now.done {
        let after = now.rows.last().map(|row| row.key.clone());
        now = page(source, now.token, after.ok_or("a page without rows that is not the last")?, false).await?;
    }
    Ok(state)
}

/// Whether the store cannot read back a row of the group.
pub async fn is_damaged(source: &Source, own: &LsmKv) -> Result<bool, String> {
    const STEP: usize = 1024;
    let rows = own.snapshot();
    let state = group::load(&KvView::over(&*rows), source.group).map_err(|error| error.to_string())?;
    for (mut from, to) in group::row_ranges(source.group, &state) {
        while from < to {
            source.check()?;
            match rows.scan(&from, &to, STEP) {
                Ok(found) => match found.last() {
                    Some(last) => from = [last.key.as_ref(), &[0]].concat().into(),
                    None => break,
                },
                Err(KvError::Damaged { .. }) => return Ok(true),
                Err(error @ KvError::Io(_)) => return Err(error.to_string()),
            }
            // A long scan must not starve what shares this thread.
            source.env.sleep(Duration::from_millis(1)).await;
        }
    }
    Ok(false)
}

async fn begin(fetch: &Fetch) -> Result<(wire::SnapshotRows, GroupState, Configuration), String> {
    let first = page(&fetch.source, 0, Bytes::new(), false).await?;
    let state = group::decode(&first.state)?;
    if state.applied_index < fetch.at_least.0 || !state.is_supported() {
        return Err("the state offered is too old, or of a newer version".into());
    }
    let configuration = Configuration::decode(&state.conf_state)?;
    Ok((first, state, configuration))
}

async fn replace(
    fetch: Fetch,
    first: wire::SnapshotRows,
    state: GroupState,
    configuration: Configuration,
) -> Result<Installed, Failed> {
    let kv: &dyn Kv = &*fetch.kv;
    // Without the group's row it is not known what is to be replaced.
    let old = group::load(&KvView::over(&*fetch.kv), fetch.source.group).map_err(|error| Failed {
        damaged: matches!(error, ViewError::Damaged { .. }),
        ..Failed::before(error.to_string())
    })?;
    let marked = group::mark(fetch.source.group, &old, Install::Incomplete);
    fetch.source.check()?;
    if !plant::is(Plant::InstallUnmarked) {
        commit(kv, vec![crate::machine::change_out(marked)])?;
        kv.flush().await.map_err(|error| error.to_string())?;
    }
    let own_row = group::state_key(fetch.source.group);
    let ranges =
        group::row_ranges(fetch.source.group, &old).into_iter().chain(group::row_ranges(fetch.source.group, &state));
    // The mark stays: all rows but the group's own.
    let ranges = ranges.flat_map(|(from, to)| around(&own_row, from, to)).collect();
    fetch.source.check()?;
    erase_all(&fetch.kv, ranges).await.map_err(|error| Failed {
        damaged: matches!(error, KvError::Damaged { .. }),
        ..Failed::from(error.to_string())
    })?;
    fetch.source.check()?;
    let mut page_now = first;
    loop {
        let puts = page_now.rows.iter().filter(|row| row.key != own_row);
        let puts: Vec<Change> =
            puts.map(|row| Change::Put { key: row.key.clone(), value: row.value.clone() }).collect();
        let last = page_now.rows.last().map(|row| row.key.clone());
        fetch.source.check()?;
        commit(kv, puts)?;
        if page_now.done {
            break;
        }
        let after = last.ok_or_else(|| Failed::from("a page without rows that is not the last".to_owned()))?;
        page_now = page(&fetch.source, page_now.token, after, false).await?;
    }
    fetch.source.check()?;
    let installed = if plant::is(Plant::InstallUnmarked) { Install::Whole } else { Install::LogDue };
    commit(kv, vec![crate::machine::change_out(group::mark(fetch.source.group, &state, installed))])?;
    kv.flush().await.map_err(|error| error.to_string())?;
    Ok(Installed {
        index: LogIndex(state.applied_index),
        term: Term(state.applied_term),
        configuration,
        message: fetch.message,
    })
}

fn commit(kv: &dyn Kv, changes: Vec<Change>) -> Result<(), String> {
    if changes.is_empty() { Ok(()) } else { kv.commit(changes).map_err(|error| error.to_string()) }
}

/// The parts of a range below and above one key.
fn around(key: &Bytes, from: Bytes, to: Bytes) -> Vec<(Bytes, Bytes)> {
    if *key < from || *key >= to {
        return vec![(from, to)];
    }
    let behind: Bytes = [key.as_ref(), &[0]].concat().into();
    [(from, key.clone()), (behind, to)].into_iter().filter(|(from, to)| from < to).collect()
}

/// One page of the rows of another replica. Token 0: of a new snapshot; `newest`: then see [`SnapshotPage::newest`].
pub async fn page(source: &Source, token: u64, after: Bytes, newest: bool) -> Result<wire::SnapshotRows, String> {
    let ask = Ask::SnapshotPage(SnapshotPage { group: source.group.0, token, after, newest });
    let request = Request { ask: Some(ask), ..Request::default() };
    let mut why = String::new();
    for attempt in 0..PAGE_ATTEMPTS {
        source.check()?;
        if attempt > 0 {
            source.env.sleep(Duration::from_millis(200)).await;
        }
        let deadline = source.env.now() + PAGE_MAX;
        let frame = wire::frame(&request, Vec::new());
        match source.env.net.call(source.from, Channel::Bulk, frame, deadline).await {
            Err(error) => why = error.to_string(),
            Ok(reply) => match wire::head::<Answer>(&reply).map(|answer| answer.told) {
                Ok(Some(Told::SnapshotRows(rows))) => return Ok(rows),
                Ok(Some(Told::Failed(failed))) => return Err(failed.detail),
                Ok(_) => return Err("an answer of a newer version".into()),
                Err(error) => return Err(error),
            },
        }
    }
    Err(format!("node {}: {why}", source.from))
}

/// Why a page is not sent.
#[derive(Debug, thiserror::Error)]
pub enum PageError {
    #[error(transparent)]
    Unreadable(#[from] ViewError),
    #[error("{0}")]
    Refused(String),
}

impl From<String> for PageError {
    fn from(why: String) -> PageError {
        PageError::Refused(why)
    }
}

/// The snapshots that this node serves to others.
pub struct Offered {
    page_rows: usize,
    open: Mutex<BTreeMap<u64, Offer>>,
}

struct Offer {
    group: GroupId,
    rows: Arc<dyn KvRead>,
    asked: MonoTime,
}

impl Offered {
    pub fn new(page_rows: usize) -> Offered {
        Offered { page_rows, open: Mutex::default() }
    }

    /// One page of rows; token 0 takes a new snapshot.
    pub fn page(&self, env: &Env, kv: &dyn Kv, ask: &SnapshotPage) -> Result<wire::SnapshotRows, PageError> {
        let group = GroupId(ask.group);
        let now = env.now();
        let (token, rows) = {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.retain(|_, offer| now.since(offer.asked) < SNAPSHOT_IDLE);
            if ask.token == 0 {
                if open.len() >= SNAPSHOTS_MAX {
                    return Err("too many snapshots are being sent; try again later".to_owned().into());
                }
                let token = env.random.next_u64() | 1;
                let rows = kv.snapshot();
                open.insert(token, Offer { group, rows: rows.clone(), asked: now });
                (token, rows)
            } else {
                let offer = open.get_mut(&ask.token).filter(|offer| offer.group == group);
                let offer = offer.ok_or_else(|| "the snapshot is not kept any more".to_owned())?;
                offer.asked = now;
                (ask.token, offer.rows.clone())
            }
        };
        // Kept also after its last page, whose answer may be lost.
        let page = read_page(&*rows, group, token, &ask.after, self.page_rows);
        if page.is_err() {
            self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&token);
        }
        page
    }
}

fn read_page(
    rows: &dyn KvRead,
    group: GroupId,
    token: u64,
    after: &Bytes,
    page_rows: usize,
) -> Result<wire::SnapshotRows, PageError> {
    let view = KvView::over(rows);
    let state = group::load(&view, group)?;
    if state.install() != Install::Whole || state.conf_state.is_empty() {
        return Err(format!("this replica of group {group} is not whole itself").into());
    }
    let mut page = wire::SnapshotRows { token, state: group::encode(&state), ..wire::SnapshotRows::default() };
    let mut bytes = 0;
    let mut ranges = group::row_ranges(group, &state);
    ranges.sort();
    for (from, to) in ranges {
        let mut from = if after.as_ref() >= from.as_ref() && !after.is_empty() {
            [after.as_ref(), &[0]].concat().into()
        } else {
            from
        };
        while from < to {
            const STEP: usize = 256;
            let found = view.scan(&from, &to, STEP.min(page_rows))?;
            let Some(last) = found.last() else { break };
            from = [last.0.as_ref(), &[0]].concat().into();
            for (key, value) in found {
                bytes += key.len() + value.len();
                page.rows.push(wire::SnapshotRow { key, value });
                // After each row: a step of long ones would be more than a frame takes.
                if page.rows.len() >= page_rows || bytes >= PAGE_BYTES {
                    return Ok(page);
                }
            }
        }
    }
    page.done = true;
    Ok(page)
}
