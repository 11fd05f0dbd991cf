//! `henge token` and `henge node`: who is in the cluster, who may join it, and who leaves.

use http::Method;
use std::process::ExitCode;

use crate::admin::{Drain, NewTokenView, RemoveNode, TokenWish};
use crate::admin_commands::{ask_as_root, print_json};
use crate::cli::{DiskAction, NodeAction, TokenAction};
use crate::failure::Failure;
use crate::nodes::{DiskView, NodeView};
use crate::units::{show_bytes, show_seconds};

pub async fn token(action: TokenAction) -> Result<ExitCode, Failure> {
    let TokenAction::Create(args) = action;
    let wish = TokenWish { expires_s: args.expires.as_secs() };
    let made: NewTokenView = ask_as_root(&args.target, Method::POST, "/v1/tokens", Some(&wish)).await?;
    if args.json {
        print_json(&made)?;
        return Ok(ExitCode::SUCCESS);
    }
    for note in &made.notes {
        println!("note: {note}");
    }
    println!(
        "One node may join with this token within {}, as `HENGE_JOIN_TOKEN=... henge server --data DIR --join {}`:",
        show_seconds(wish.expires_s),
        made.join
    );
    println!("{}", made.token);
    Ok(ExitCode::SUCCESS)
}

pub async fn node(action: NodeAction) -> Result<ExitCode, Failure> {
    match action {
        NodeAction::List(args) => {
            let nodes: Vec<NodeView> = ask_as_root(&args.target, Method::GET, "/v1/nodes", None::<&()>).await?;
            if args.json {
                print_json(&nodes)?;
            } else {
                nodes.iter().for_each(|node| println!("{}", line_of(node)));
            }
        }
        NodeAction::Drain(args) => {
            let path = format!("/v1/nodes/{}/drain", path_id(&args.id)?);
            let node: NodeView =
                ask_as_root(&args.target, Method::POST, &path, Some(&Drain { undo: args.undo })).await?;
            match args.undo {
                _ if args.json => print_json(&node)?,
                true => println!("node {} is {} and takes data again", node.id, node.state),
                false => println!(
                    "node {} is {}: {} placement groups are to leave it; `henge node list` shows how many are left",
                    node.id, node.state, node.placement_groups
                ),
            }
        }
        NodeAction::Remove(args) => {
            let path = format!("/v1/nodes/{}/remove", args.id);
            let wish = RemoveNode { lost: args.lost };
            let node: NodeView = ask_as_root(&args.target, Method::POST, &path, Some(&wish)).await?;
            match node.state.as_str() {
                _ if args.json => print_json(&node)?,
                "removed" => println!("node {} is removed; what it held is made again from the other copies", node.id),
                _ => println!(
                    "node {} is {}: its data moves to other nodes, then it is removed; `henge node list` shows when; keep it \
                     running until then",
                    node.id, node.state
                ),
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub async fn disk(action: DiskAction) -> Result<ExitCode, Failure> {
    match action {
        DiskAction::List(args) => {
            let disks: Vec<DiskView> = ask_as_root(&args.target, Method::GET, "/v1/disks", None::<&()>).await?;
            if args.json {
                print_json(&disks)?;
            } else {
                disks.iter().for_each(|disk| println!("{}", disk_line(disk)));
            }
        }
        DiskAction::Drain(args) => {
            let path = format!("/v1/disks/{}/drain", path_id(&args.id)?);
            let disk: DiskView =
                ask_as_root(&args.target, Method::POST, &path, Some(&Drain { undo: args.undo })).await?;
            match args.undo {
                _ if args.json => print_json(&disk)?,
                true => println!("disk {} of node {} takes data again", disk.id, disk.node),
                false => println!(
                    "disk {} of node {} is draining: {} placement groups are to leave it; `henge disk list` shows how many are \
                     left, then `henge disk remove` it",
                    disk.id, disk.node, disk.placement_groups
                ),
            }
        }
        DiskAction::Remove(args) => {
            let path = format!("/v1/disks/{}/remove", path_id(&args.id)?);
            let disk: DiskView = ask_as_root(&args.target, Method::POST, &path, None::<&()>).await?;
            if args.json {
                print_json(&disk)?;
            } else {
                println!("disk {} of node {} is removed; start the node without it", disk.id, disk.node);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Ids are digits, letters and dashes: nothing that means something in a path.
fn path_id(id: &str) -> Result<&str, Failure> {
    let is_id = !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if is_id { Ok(id) } else { Err(Failure(format!("{id:?} is no id: `list` shows them"))) }
}

fn disk_line(disk: &DiskView) -> String {
    format!(
        "disk {}  node {}  {}  {}  {} placement groups",
        disk.id,
        disk.node,
        disk.state,
        show_bytes(disk.capacity_bytes),
        disk.placement_groups
    )
}

fn line_of(node: &NodeView) -> String {
    let place = if node.locality.is_empty() { String::new() } else { format!("  {}", node.locality) };
    format!(
        "node {}  {}  {}  {} disk(s)  {} placement groups  generation {}{place}",
        node.id, node.state, node.address, node.disks, node.placement_groups, node.generation
    )
}
