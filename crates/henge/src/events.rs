//! `henge events`: what happened, as a timeline.

use base::calendar::iso8601;
use http::Method;
use serde::{Deserialize, Serialize};
use std::process::ExitCode;

use crate::admin_commands::{ask, print_json};
use crate::cli::EventsArgs;
use crate::failure::Failure;
use crate::target::Target;

/// An event as scripts see it.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct EventView {
    /// Wall-clock milliseconds since 1970, of the node that saw it first.
    pub time_ms: u64,
    /// `suspected`, `confirmed`, `cut`, `heard`, `fenced`, `elected`, `up`, `lost`, `moving`, `moved`, `repaired` and so on.
    pub kind: String,
    /// The node that it is about; `null` for none.
    pub node: Option<u32>,
    /// A whole sentence.
    pub text: String,
    /// Nodes that saw it.
    pub seen_by: Vec<u32>,
}

impl From<node::Event> for EventView {
    fn from(event: node::Event) -> EventView {
        EventView {
            time_ms: event.wall_ms,
            kind: event.kind().as_str().into(),
            node: (event.about != 0).then_some(event.about),
            text: event.text,
            seen_by: event.seen_by,
        }
    }
}

pub async fn run(args: EventsArgs) -> Result<ExitCode, Failure> {
    let target = Target::find(&args.target)?;
    let mut events: Vec<EventView> = ask(&target, Method::GET, "/events", None::<&()>).await?;
    let newest_ms = events.last().map_or(0, |event| event.time_ms);
    if let Some(since) = args.since {
        let since_ms = newest_ms.saturating_sub(u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
        events.retain(|event| event.time_ms >= since_ms);
    }
    if args.json {
        print_json(&events)?;
    } else {
        print!("{}", timeline(&events));
    }
    Ok(ExitCode::SUCCESS)
}

/// A line an event: when, how long after the one before, what, and who saw it.
fn timeline(events: &[EventView]) -> String {
    let mut before = None;
    let mut out = String::new();
    for event in events {
        let after_ms = before.map_or(0, |before: u64| event.time_ms.saturating_sub(before));
        before = Some(event.time_ms);
        let (seconds, millis) = (after_ms / 1000, after_ms % 1000);
        let seen_by = event.seen_by.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let (time, kind) = (iso8601(event.time_ms), &event.kind);
        out += &format!("{time}  +{seconds:>4}.{millis:03} s  {kind:<10}  {}  (node {seen_by})\n", event.text);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeline_says_when_what_and_who() {
        let event = |time_ms, kind: &str, seen_by: &[u32]| EventView {
            time_ms,
            kind: kind.into(),
            node: Some(3),
            text: "node 3 does something".into(),
            seen_by: seen_by.to_vec(),
        };
        let shown =
            timeline(&[event(1_700_000_000_000, "suspected", &[1, 2]), event(1_700_000_000_250, "fenced", &[1])]);
        let lines: Vec<&str> = shown.lines().collect();
        assert!(lines[0].starts_with("2023-11-14T22:13:20") && lines[0].ends_with("(node 1,2)"), "{shown}");
        assert!(lines[1].contains("+   0.250 s  fenced "), "{shown}");
    }
}
