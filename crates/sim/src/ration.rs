//! What is destroyed is rationed, so that what is promised can be kept; and the rationing itself is asserted.

use base::ids::NodeId;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Which nodes are in trouble: never more than a minority at once, apart from power cuts that hit all. Copies are damaged
/// or destroyed on one node only, until everything has been safe again without them.
#[derive(Clone, Default)]
pub struct Ration(Arc<Mutex<Rationed>>);

#[derive(Default)]
struct Rationed {
    struck: BTreeSet<NodeId>,
    /// Its copies may be bad or missing, so that those of the others must be spared.
    tainted: Option<NodeId>,
    /// Its replicas may have to be made anew, so that they do not vote yet.
    wounded: Option<NodeId>,
}

impl Ration {
    fn held(&self) -> MutexGuard<'_, Rationed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `node`, of so many, is in trouble from now on.
    pub fn strike(&self, node: NodeId, nodes: usize) {
        let mut held = self.held();
        assert!(held.struck.insert(node), "one trouble at a time for node {node}");
        assert!(held.struck.len() <= (nodes - 1) / 2, "at most a minority of {nodes} nodes is in trouble");
        let is_whole = held.wounded.is_none_or(|wounded| wounded == node);
        assert!(is_whole, "nobody else is struck before node {:?} is whole again", held.wounded);
        let is_spared = held.tainted.is_some_and(|tainted| tainted != node);
        assert!(!is_spared || held.struck.len() == 1, "beside node {:?} only one more is touched", held.tainted);
    }

    pub fn mend(&self, node: NodeId) {
        assert!(self.held().struck.remove(&node), "node {node} was in trouble");
    }

    /// Copies on `node` go bad: on no other are there any.
    pub fn taint(&self, node: NodeId) {
        let mut held = self.held();
        assert!(held.tainted.is_none_or(|tainted| tainted == node), "the only good copies may be elsewhere");
        held.tainted = Some(node);
    }

    /// The tainted node is gone with all its copies, and what is left is whole.
    pub fn untaint(&self) {
        self.held().tainted = None;
    }

    /// The metadata of `node` was out of reach or bad: it must be whole again before anybody else is struck.
    pub fn wound(&self, node: NodeId) {
        self.held().wounded = Some(node);
    }

    /// Every node says that everything is safe.
    pub fn heal(&self) {
        self.held().wounded = None;
    }

    pub fn is_anybody_wounded(&self) -> bool {
        self.held().wounded.is_some()
    }

    /// The node whose copies may be bad until they have been looked at.
    pub fn tainted(&self) -> Option<NodeId> {
        self.held().tainted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "at most a minority")]
    fn two_of_three_are_never_struck() {
        let ration = Ration::default();
        ration.strike(NodeId(1), 3);
        ration.strike(NodeId(2), 3);
    }

    #[test]
    #[should_panic(expected = "is whole again")]
    fn nobody_is_struck_before_a_wounded_node_is_whole() {
        let ration = Ration::default();
        ration.strike(NodeId(1), 3);
        ration.wound(NodeId(1));
        ration.mend(NodeId(1));
        ration.strike(NodeId(2), 3);
    }

    #[test]
    #[should_panic(expected = "the only good copies")]
    fn copies_rot_on_one_node_only() {
        let ration = Ration::default();
        ration.taint(NodeId(1));
        ration.taint(NodeId(2));
    }

    #[test]
    #[should_panic(expected = "only one more is touched")]
    fn beside_a_tainted_node_only_one_more_is_touched() {
        let ration = Ration::default();
        ration.taint(NodeId(1));
        ration.strike(NodeId(2), 5);
        ration.strike(NodeId(3), 5);
    }
}
