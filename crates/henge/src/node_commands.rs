//! `henge token` and `henge node`: who is in the cluster, who may join it, and who leaves.

use http::Method;
use std::process::ExitCode;

use crate::admin::{NewTokenView, RemoveNode, TokenWish};
use crate::admin_commands::{ask_as_root, print_json};
use crate::cli::{NodeAction, TokenAction};
use crate::failure::Failure;
use crate::nodes::NodeView;
use crate::units::show_seconds;

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

fn line_of(node: &NodeView) -> String {
    let place = if node.locality.is_empty() { String::new() } else { format!("  {}", node.locality) };
    format!(
        "node {}  {}  {}  {} disk(s)  generation {}{place}",
        node.id, node.state, node.address, node.disks, node.generation
    )
}
