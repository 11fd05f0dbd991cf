//! `henge root set-secret`: another secret for the root user, on all nodes at once.

use http::Method;
use serde::Serialize;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use crate::admin::{KeyView, RootView, RootWish};
use crate::admin_commands::{Unanswered, print_json, try_ask};
use crate::cli::{RootAction, RootSetSecretArgs};
use crate::cluster_file::ClusterFile;
use crate::credentials::{self, Credentials};
use crate::env::system_random;
use crate::failure::{Context, Failure};
use crate::target::Target;

/// How often, and after which pause, the cluster is asked whether it took a change whose answer was lost.
const LOOKS: u32 = 10;
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// How long the node of `--data` may take to write down what it has heard.
const FILE_PATIENCE: Duration = Duration::from_secs(5);
const FILE_PAUSE: Duration = Duration::from_millis(20);

/// More than any secret has.
const SECRET_BYTES_MAX: u64 = 4096;

/// What `--json` prints.
#[derive(Serialize)]
struct Changed<'a> {
    access_key: &'a str,
    /// Absent: the one that was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    secret_key: Option<&'a str>,
    /// How often a command has set the root user; absent: the answer was lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    changes: Option<u64>,
}

pub async fn run(action: RootAction) -> Result<ExitCode, Failure> {
    let RootAction::SetSecret(args) = action;
    let target = Target::find(&args.target)?;
    let before = target.credentials()?;
    let given = args.secret_file.as_deref().map(read_secret).transpose()?;
    // Drawn here, not by the node: when its answer is lost, the secret is not.
    let secret_key = given.clone().unwrap_or_else(|| credentials::draw_secret(&system_random()));
    let wished = Credentials { access_key: args.access_key.clone().unwrap_or(before.access_key), secret_key };
    credentials::check(&wished)?;
    let wish = RootWish { access_key: wished.access_key.clone(), secret_key: wished.secret_key.clone() };
    let shown = given.is_none().then_some(wished.secret_key.as_str());
    match try_ask::<RootView>(&target, Method::PUT, "/v1/root", Some(&wish)).await {
        Ok(view) => print(&args, &wished, shown, Some(view.changes))?,
        Err(Unanswered::Refused(failure)) => return Err(failure),
        Err(Unanswered::Unknown(failure)) => {
            let new = Target { credentials: Some(wished.clone()), ..target };
            if !is_in_force(&new).await {
                if let Some(secret) = shown {
                    eprintln!("should it be in force after all, the new secret is {secret}");
                }
                return Err(Failure(format!("it is not known whether the root user has the new secret: {failure}")));
            }
            print(&args, &wished, shown, None)?;
        }
    }
    if let Some(data) = &args.target.data {
        wait_for_file(data, &wished).await;
    }
    Ok(ExitCode::SUCCESS)
}

fn print(
    args: &RootSetSecretArgs,
    wished: &Credentials,
    secret_key: Option<&str>,
    changes: Option<u64>,
) -> Result<(), Failure> {
    let access_key = &wished.access_key;
    if args.json {
        return print_json(&Changed { access_key, secret_key, changes });
    }
    match secret_key {
        None => println!("the root user {access_key} has the new secret"),
        Some(secret_key) => {
            println!("# root user: its secret is shown now and never again; the old one is refused from now on");
            println!("export AWS_ACCESS_KEY_ID={access_key}");
            println!("export AWS_SECRET_ACCESS_KEY={secret_key}");
        }
    }
    Ok(())
}

/// The first line.
fn read_secret(path: &Path) -> Result<String, Failure> {
    let cannot = || format!("the secret cannot be read from {}", path.display());
    let from: Box<dyn Read> = match path.to_str() {
        Some("-") => Box::new(std::io::stdin()),
        _ => Box::new(std::fs::File::open(path).context(cannot)?),
    };
    let mut line = String::new();
    BufReader::new(from.take(SECRET_BYTES_MAX)).read_line(&mut line).context(cannot)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// Whether the cluster takes these credentials.
async fn is_in_force(target: &Target) -> bool {
    for look in 0..LOOKS {
        if look > 0 {
            tokio::time::sleep(LOOK_PAUSE).await;
        }
        if try_ask::<Vec<KeyView>>(target, Method::GET, "/v1/keys", None::<&()>).await.is_ok() {
            return true;
        }
    }
    false
}

/// The next command on this machine takes its credentials from there.
async fn wait_for_file(data: &Path, wished: &Credentials) {
    let written = async {
        while ClusterFile::read(data).ok().flatten().is_none_or(|file| file.credentials() != *wished) {
            tokio::time::sleep(FILE_PAUSE).await;
        }
    };
    if tokio::time::timeout(FILE_PATIENCE, written).await.is_err() {
        eprintln!("{} does not show the new secret yet; its node will write it", data.display());
    }
}
