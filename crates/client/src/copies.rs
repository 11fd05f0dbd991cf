//! The copies of one chunk: a placement group is drawn, the chunk goes to all its members at once, and the bucket's rule
//! of acknowledgement decides when that is enough. What cannot be stored there goes elsewhere under a new id.
//!
//! ```text
//! draw a group -> store on each member in service (at once; silence: the same store again)
//!    ^                      |
//!    |                 [`judge`] after each answer and each new map
//!    |                      |
//!    +--- abandon ----------+---- wait --- (until the map marks the silent member down, or it answers)
//!                           +---- enough
//! ```

use base::CHUNK_SIZE_MAX;
use base::checksum::Crc64;
use base::env::{BoxFuture, MonoTime, Random};
use base::ids::{ChunkId, DiskId, PoolId, Slot};
use base::plant::{self, Plant};
use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use meta::chunks::ChunkRef;
use meta::map::command::Acknowledgement;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::buckets::BucketInfo;
use crate::call::{Backoff, Client, LEADERLESS_MAX, Life};
use crate::error::Error;
use crate::map::{MapView, Member, Placement};
use crate::wire::{Ask, ChunkDone, CloneChunk, Failure, PutChunk, Told};

/// How long one attempt at a store may take. An attempt at a node that is voted out ends with that.
const STORE_ATTEMPT_MAX: Duration = Duration::from_secs(5);
/// Placement groups that are tried for one chunk before its disks are called full.
const FULL_GROUPS_MAX: usize = 8;
/// Placement groups that are tried for one chunk before the caller is told, while the time is not up.
const GROUPS_MAX: usize = 64;

/// How long a silent member is waited for before one looks whether anybody can vote it down.
const SILENCE_MAX: Duration = Duration::from_secs(2);

/// Why a chunk is not stored where it was to go.
pub(crate) enum Halt {
    /// It goes elsewhere under a new id.
    Elsewhere(Failure, String),
    /// Nowhere would do.
    Nowhere(String),
}

/// A chunk on its way to all its members.
pub(crate) struct NewCopy {
    pub id: ChunkId,
    pub owner: u64,
    pub content: Content,
}

/// Where the bytes of a new chunk come from.
pub(crate) enum Content {
    /// They travel.
    Bytes { payload: Vec<Bytes>, crc64: u64 },
    /// Each member has them already, in this chunk. `crc64` is known for a whole chunk; else the first member says it.
    Clone { from: ChunkId, range: Range<u32>, crc64: OnceLock<u64> },
}

impl NewCopy {
    /// Over the bytes; `None` while no member has said it.
    pub fn crc64(&self) -> Option<u64> {
        match &self.content {
            Content::Bytes { crc64, .. } => Some(*crc64),
            Content::Clone { crc64, .. } => crc64.get().copied(),
        }
    }

    /// What `member` is asked to do, with the bytes for it.
    fn ask(&self, member: &Member, epoch: u32) -> (Ask, Vec<Bytes>) {
        let disk = Bytes::copy_from_slice(&member.disk.0.to_be_bytes());
        let (id, owner) = (Bytes::copy_from_slice(&self.id.to_bytes()), self.owner);
        match &self.content {
            Content::Bytes { payload, crc64 } => {
                (Ask::PutChunk(PutChunk { disk, id, owner, epoch, crc64: *crc64 }), payload.clone())
            }
            Content::Clone { from, range, .. } => {
                let from = Bytes::copy_from_slice(&from.to_bytes());
                let (start, end) = (range.start, range.end);
                (Ask::CloneChunk(CloneChunk { disk, from, start, end, id, owner, epoch }), Vec::new())
            }
        }
    }

    /// Whether what a member made has the checksum that it must have.
    fn is_same(&self, done: &ChunkDone) -> bool {
        match &self.content {
            Content::Bytes { .. } => true,
            Content::Clone { crc64, .. } => *crc64.get_or_init(|| done.crc64) == done.crc64,
        }
    }
}

/// Stores under way, one a member at most.
type Copying = FuturesUnordered<BoxFuture<(DiskId, CopyState)>>;

/// What is known of one member's copy.
#[derive(Clone, Debug, PartialEq, Eq)]
enum CopyState {
    /// Not sent, or sent without an answer before the member went out of service.
    Wanted,
    UnderWay,
    /// Durable, under the epoch that the group was drawn with.
    Stored,
    /// Surely not stored, and no retry will help.
    Refused(Failure, String),
}

/// What a set of copies means.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Enough,
    Wait,
    /// The chunk goes elsewhere under a new id.
    Abandon(Failure, String),
}

/// Judges the copies of a chunk that was placed as `drawn` says. `now` is the same group in the newest map.
///
/// `All`: every member that the map does not mark out of service has stored, and they are a majority of the members.
/// `Majority`: a majority of the members has stored. `One`: a member has. `AllStrict`: every member has, in service or not.
fn judge(
    drawn: &Placement,
    now: Option<&Placement>,
    copies: &BTreeMap<DiskId, CopyState>,
    rule: Acknowledgement,
) -> Verdict {
    let Some(now) = now.filter(|now| now.epoch == drawn.epoch && !now.closed) else {
        return Verdict::Abandon(Failure::StalePlacement, "the placement group moves meanwhile".into());
    };
    let majority = now.majority();
    let is_stored = |member: &&Member| copies.get(&member.disk) == Some(&CopyState::Stored);
    let stored = now.members.iter().filter(is_stored).count();
    let enough = match rule {
        _ if plant::is(Plant::StoreAtMajority) => majority,
        Acknowledgement::One => 1,
        Acknowledgement::Majority => majority,
        Acknowledgement::All | Acknowledgement::AllStrict => now.members.len(),
    };
    if stored >= enough {
        return Verdict::Enough;
    }
    if rule == Acknowledgement::AllStrict
        && let Some(gone) = now.members.iter().find(|member| !member.usable && !is_stored(member))
    {
        let why = format!("all-strict needs all copies, and node {} or its disk is out of service", gone.node);
        return Verdict::Abandon(Failure::TooFewCopies, why);
    }
    // Who is out of service is waited for no more, whatever it said.
    let waited_for: Vec<&Member> = now.members.iter().filter(|member| member.usable && !is_stored(member)).collect();
    for member in &waited_for {
        if let Some(CopyState::Refused(failure, why)) = copies.get(&member.disk) {
            return Verdict::Abandon(*failure, why.clone());
        }
    }
    if stored + waited_for.len() < enough.min(majority) {
        return Verdict::Abandon(Failure::Busy, "most of the disks of its placement group are out of service".into());
    }
    if waited_for.is_empty() { Verdict::Enough } else { Verdict::Wait }
}

fn no_group(rule: Acknowledgement) -> &'static str {
    match rule {
        Acknowledgement::AllStrict => {
            "all-strict needs a placement group with all its copies in service, and there is none"
        }
        Acknowledgement::One => "no placement group has a disk in service",
        _ => "no placement group has a majority of its disks in service",
    }
}

/// Who has not answered, and why nothing can be done about it.
fn silence(map: &MapView, now: Option<&Placement>, copies: &BTreeMap<DiskId, CopyState>) -> String {
    let is_silent =
        |member: &&Member| copies.get(&member.disk) != Some(&CopyState::Stored) && map.is_usable(member.disk);
    let silent = now.iter().flat_map(|now| &now.members).filter(is_silent).map(|member| member.node.to_string());
    format!(
        "no answer from node {} for {} s, and no majority of the cluster map's voters (group 0) is within reach to go on \
         without it",
        silent.collect::<Vec<_>>().join(" and "),
        SILENCE_MAX.as_secs()
    )
}

impl Client {
    /// Makes one chunk durable on a drawn placement group.
    pub(crate) async fn store_chunk(
        &self,
        life: &Life,
        bucket: &BucketInfo,
        payload: Vec<Bytes>,
    ) -> Result<ChunkRef, Error> {
        let len = payload.iter().map(Bytes::len).sum::<usize>();
        assert!(len > 0 && len <= CHUNK_SIZE_MAX, "a chunk holds between 1 byte and 4 MiB");
        let mut crc = Crc64::new();
        payload.iter().for_each(|piece| crc.update(piece));
        let crc64 = crc.finish();
        let env = &self.shared.env;
        let mut backoff = Backoff::for_operation(env);
        let mut why = String::from(no_group(self.acknowledgement(&self.map(), bucket)));
        let mut full = 0;
        let mut homeless: Option<MonoTime> = None;
        for attempt in 0..GROUPS_MAX {
            let is_hopeless = homeless.is_some_and(|since| env.now().since(since) >= LEADERLESS_MAX);
            if is_hopeless || (attempt > 0 && !backoff.wait(env).await) {
                break;
            }
            let Some((id, placement)) = self.draw(life, bucket)? else {
                homeless.get_or_insert(env.now());
                self.newer_map_or_pause().await;
                continue;
            };
            homeless = None;
            let content = Content::Bytes { payload: payload.clone(), crc64 };
            let copy = Arc::new(NewCopy { id, owner: bucket.id, content });
            match self.store_copies(bucket, &placement, copy, backoff.deadline()).await {
                Ok(()) => return Ok(ChunkRef { id, len: len as u32, crc64 }),
                Err(Halt::Nowhere(detail)) => {
                    self.delete_in_background(vec![id]);
                    return Err(Error::Unavailable(detail));
                }
                Err(Halt::Elsewhere(Failure::StaleGeneration, _)) => {
                    self.delete_in_background(vec![id]);
                    let why = "this node was voted out of the cluster while it stored the data: send it again";
                    return Err(Error::Unavailable(why.into()));
                }
                Err(Halt::Elsewhere(failure, detail)) => {
                    why = detail;
                    self.delete_in_background(vec![id]);
                    full += usize::from(failure == Failure::Full);
                    if full == FULL_GROUPS_MAX {
                        return Err(Error::Full);
                    }
                }
            }
        }
        Err(if full > 0 { Error::Full } else { Error::Unavailable(format!("no chunk could be stored: {why}")) })
    }

    /// A fresh id in a group that can take it; `None` when there is no such group now.
    fn draw(&self, life: &Life, bucket: &BucketInfo) -> Result<Option<(ChunkId, Placement)>, Error> {
        let map = self.map();
        let Ok(pool) = u8::try_from(bucket.pool).map(PoolId) else {
            return Err(Error::Invalid(format!("bucket {} is in pool {}, which cannot be", bucket.name, bucket.pool)));
        };
        let random: &dyn Random = &*self.shared.env.random;
        let rule = self.acknowledgement(&map, bucket);
        let Some((slot, placement)) = map.draw(pool, rule, || random.next_u64() as u32) else { return Ok(None) };
        let (session, counter) = life.next_chunk_number()?;
        let (slot, counter) =
            if plant::is(Plant::ReuseChunkId) { (Slot::new(slot.get() >> 17 << 17), 1) } else { (slot, counter) };
        Ok(Some((ChunkId { pool, slot, session, counter }, placement)))
    }

    async fn newer_map_or_pause(&self) {
        const PAUSE_MAX: Duration = Duration::from_millis(500);
        let version = self.map().version();
        let _ = self.shared.env.timeout(PAUSE_MAX, self.map_newer_than(version)).await;
    }

    /// Stores on all members in parallel and waits until that is enough.
    pub(crate) async fn store_copies(
        &self,
        bucket: &BucketInfo,
        placement: &Placement,
        copy: Arc<NewCopy>,
        deadline: MonoTime,
    ) -> Result<(), Halt> {
        let mut copying = Copying::new();
        let mut copies: BTreeMap<DiskId, CopyState> =
            placement.members.iter().map(|member| (member.disk, CopyState::Wanted)).collect();
        let time_up = self.shared.env.clock.sleep_until(deadline);
        let in_vain = self.in_vain();
        tokio::pin!(time_up, in_vain);
        loop {
            let map = self.map();
            let now = map.placement(copy.id);
            let rule = self.acknowledgement(&map, bucket);
            match judge(placement, now.as_ref(), &copies, rule) {
                // An answer has shown a newer map: it may say that there is somebody else to wait for.
                Verdict::Enough if rule == Acknowledgement::All && !self.shared.newest.is_newest(&map) => {}
                Verdict::Enough if self.let_go(&mut copying) => return Ok(()),
                Verdict::Abandon(failure, why) => return Err(Halt::Elsewhere(failure, why)),
                Verdict::Enough | Verdict::Wait => {}
            }
            for member in now.iter().flat_map(|now| &now.members).filter(|member| member.usable) {
                let state = copies.get_mut(&member.disk).expect("the epoch is the same, so the members are");
                if *state == CopyState::Wanted {
                    *state = CopyState::UnderWay;
                    let (client, copy) = (self.clone(), copy.clone());
                    let (member, epoch) = (*member, placement.epoch.0);
                    copying.push(Box::pin(async move {
                        (member.disk, client.store_copy(&member, epoch, &copy, deadline).await)
                    }));
                }
            }
            tokio::select! {
                biased;
                Some((disk, state)) = copying.next() => drop(copies.insert(disk, state)),
                _ = self.map_newer_than(map.version()) => {}
                () = &mut time_up => {
                    let why = format!("not enough copies of chunk {} were stored in time", copy.id);
                    return Err(Halt::Elsewhere(Failure::Busy, why));
                }
                () = &mut in_vain => return Err(Halt::Nowhere(silence(&map, now.as_ref(), &copies))),
            }
        }
    }

    /// Returns when it is of no use to wait for a silent member any longer: nobody can vote it down.
    async fn in_vain(&self) {
        loop {
            self.shared.env.sleep(SILENCE_MAX).await;
            if !self.majority_answers().await {
                return;
            }
        }
    }

    /// Enough copies are durable. Those still under way (`majority`) go on in the background, if memory allows.
    fn let_go(&self, copying: &mut Copying) -> bool {
        if copying.is_empty() {
            return true;
        }
        let Ok(permit) = self.shared.lagging.clone().try_acquire_owned() else { return false };
        let mut rest = std::mem::take(copying);
        self.shared.env.spawn("finish copies", async move {
            while rest.next().await.is_some() {}
            drop(permit);
        });
        true
    }

    /// Stores one copy; silence is answered with the same store again, while the member is in service.
    async fn store_copy(&self, member: &Member, epoch: u32, copy: &NewCopy, deadline: MonoTime) -> CopyState {
        if member.node != self.session().node && plant::is(Plant::UnsentStores) {
            return CopyState::Stored;
        }
        let mut backoff = Backoff::new(deadline);
        loop {
            let (ask, bytes) = copy.ask(member, epoch);
            match self.ask_node(member.node, ask, bytes, STORE_ATTEMPT_MAX).await {
                Ok((Told::Chunk(done), _)) if done.epoch == epoch && !copy.is_same(&done) => {
                    let why = format!("the copies of the source of chunk {} differ", copy.id);
                    return CopyState::Refused(Failure::Damaged, why);
                }
                Ok((Told::Chunk(done), _)) if done.epoch == epoch => return CopyState::Stored,
                Ok(_) => {
                    let why = format!("node {} counts under another epoch", member.node);
                    return CopyState::Refused(Failure::StalePlacement, why);
                }
                Err((Failure::Busy | Failure::Unknown, _)) => {}
                Err((failure, why)) => return CopyState::Refused(failure, why),
            }
            if !self.map().is_usable(member.disk) {
                return CopyState::Wanted;
            }
            if !backoff.wait(&self.shared.env).await {
                // Not wanted again: who fails at once would be asked over and over until then.
                self.shared.env.clock.sleep_until(deadline).await;
                return CopyState::Refused(Failure::Busy, format!("node {} did not store it in time", member.node));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use CopyState::{Stored, UnderWay, Wanted};
    use base::ids::{NodeId, PgEpoch};

    /// One letter a member: `u` in service, `d` down.
    fn placement(epoch: u32, closed: bool, members: &str) -> Placement {
        let member = |(number, letter): (usize, char)| Member {
            disk: DiskId(number as u128),
            node: NodeId(number as u32),
            usable: letter == 'u',
            slow: false,
        };
        let members = members.chars().enumerate().map(member).collect();
        Placement { epoch: PgEpoch(epoch), closed, members, members_before: vec![] }
    }

    fn refused() -> CopyState {
        CopyState::Refused(Failure::Full, "full".into())
    }

    fn verdict(members: &str, copies: &[CopyState], rule: Acknowledgement) -> Verdict {
        let drawn = placement(4, false, "uuu");
        let copies = copies.iter().enumerate().map(|(number, state)| (DiskId(number as u128), state.clone())).collect();
        judge(&drawn, Some(&placement(4, false, members)), &copies, rule)
    }

    #[test]
    fn all_waits_for_every_member_that_is_not_down_and_never_takes_less_than_a_majority() {
        let all = |members: &str, copies: &[CopyState]| verdict(members, copies, Acknowledgement::All);
        assert_eq!(all("uuu", &[Stored, Stored, Stored]), Verdict::Enough);
        assert_eq!(all("uuu", &[Stored, Stored, UnderWay]), Verdict::Wait);
        assert_eq!(all("uuu", &[Stored, Stored, Wanted]), Verdict::Wait);
        // The silent one was marked down: two of three.
        assert_eq!(all("uud", &[Stored, Stored, UnderWay]), Verdict::Enough);
        // It came back before the others answered.
        assert_eq!(all("uuu", &[Stored, UnderWay, Wanted]), Verdict::Wait);
        assert!(matches!(all("udd", &[Stored, UnderWay, UnderWay]), Verdict::Abandon(Failure::Busy, _)));
        // What was stored on a node that went down since is stored.
        assert_eq!(all("udd", &[Stored, Stored, UnderWay]), Verdict::Enough);
        assert_eq!(all("ddd", &[Stored, Stored, UnderWay]), Verdict::Enough);
        assert!(matches!(all("ddd", &[Stored, Wanted, Wanted]), Verdict::Abandon(..)));
    }

    #[test]
    fn a_refusal_moves_the_chunk_unless_its_member_is_out_of_service() {
        let all = |members: &str, copies: &[CopyState]| verdict(members, copies, Acknowledgement::All);
        assert!(matches!(all("uuu", &[Stored, Stored, refused()]), Verdict::Abandon(Failure::Full, _)));
        assert!(matches!(all("uuu", &[UnderWay, UnderWay, refused()]), Verdict::Abandon(Failure::Full, _)));
        assert_eq!(all("uud", &[Stored, Stored, refused()]), Verdict::Enough);
        assert_eq!(all("uud", &[Stored, UnderWay, refused()]), Verdict::Wait);
    }

    #[test]
    fn a_majority_is_enough_where_the_bucket_says_so() {
        let majority = |members: &str, copies: &[CopyState]| verdict(members, copies, Acknowledgement::Majority);
        assert_eq!(majority("uuu", &[Stored, Stored, UnderWay]), Verdict::Enough);
        assert_eq!(majority("uuu", &[Stored, UnderWay, UnderWay]), Verdict::Wait);
        assert_eq!(majority("uuu", &[Stored, Stored, refused()]), Verdict::Enough);
        assert!(matches!(majority("udd", &[Stored, Wanted, Wanted]), Verdict::Abandon(..)));
    }

    #[test]
    fn one_is_enough_where_the_writer_says_so() {
        let one = |members: &str, copies: &[CopyState]| verdict(members, copies, Acknowledgement::One);
        assert_eq!(one("uuu", &[Stored, UnderWay, UnderWay]), Verdict::Enough);
        assert_eq!(one("udd", &[Stored, Wanted, Wanted]), Verdict::Enough);
        assert_eq!(one("udd", &[UnderWay, Wanted, Wanted]), Verdict::Wait);
        assert!(matches!(one("ddd", &[Wanted, Wanted, Wanted]), Verdict::Abandon(..)));
    }

    #[test]
    fn all_strict_takes_nothing_less_than_all() {
        let strict = |members: &str, copies: &[CopyState]| verdict(members, copies, Acknowledgement::AllStrict);
        assert_eq!(strict("uuu", &[Stored, Stored, Stored]), Verdict::Enough);
        assert_eq!(strict("uuu", &[Stored, Stored, UnderWay]), Verdict::Wait);
        assert!(matches!(strict("uud", &[Stored, Stored, UnderWay]), Verdict::Abandon(Failure::TooFewCopies, _)));
        assert_eq!(strict("uud", &[Stored, Stored, Stored]), Verdict::Enough, "what it has flushed before, it has");
    }

    #[test]
    fn a_group_that_moves_takes_no_chunk_however_many_have_stored() {
        let drawn = placement(4, false, "uuu");
        let copies = (0..3).map(|number| (DiskId(number), Stored)).collect();
        for now in
            [None, Some(placement(5, false, "uuu")), Some(placement(5, true, "uuu")), Some(placement(4, true, "uuu"))]
        {
            use Acknowledgement::{All, AllStrict, Majority, One};
            for rule in [All, Majority, AllStrict, One] {
                let verdict = judge(&drawn, now.as_ref(), &copies, rule);
                assert!(matches!(verdict, Verdict::Abandon(Failure::StalePlacement, _)), "{now:?}");
            }
        }
    }
}
