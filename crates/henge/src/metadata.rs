//! `henge metadata`: the cluster's metadata as a file. Taken from a running cluster, put back on stopped nodes.

use base::calendar::iso8601;
use base::env::Disk;
use base::ids::NodeId;
use http::{Method, Request};
use http_body_util::Full;
use node::backup::{self, Summary};
use serde::Serialize;
use std::fs;
use std::io::{BufReader, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use crate::admin_commands::print_json;
use crate::basic_auth;
use crate::cli::{MetadataAction, MetadataBackupArgs, MetadataCheckArgs, MetadataRestoreArgs};
use crate::env::{RealDisk, real_env};
use crate::failure::{Context, Failure};
use crate::http_client::HttpClient;
use crate::membership;
use crate::target::Target;
use crate::units::show_bytes;

pub const BACKUP_PATH: &str = "/v1/metadata/backup";

pub async fn run(action: MetadataAction) -> Result<ExitCode, Failure> {
    match action {
        MetadataAction::Backup(args) => take(args).await?,
        MetadataAction::Check(args) => check(&args)?,
        MetadataAction::Restore(args) => return restore(args).await,
    }
    Ok(ExitCode::SUCCESS)
}

/// What a backup holds, for scripts.
#[derive(Serialize)]
struct BackupView {
    file: PathBuf,
    bytes: u64,
    cluster: String,
    cluster_generation: u32,
    taken_ms: u64,
    buckets: usize,
    versions: u64,
    nodes: Vec<u32>,
    groups: Vec<GroupView>,
}

#[derive(Serialize)]
struct GroupView {
    group: u64,
    rows: u64,
    applied: u64,
    voters: Vec<u32>,
}

async fn take(args: MetadataBackupArgs) -> Result<(), Failure> {
    if args.file.exists() {
        return Err(Failure(format!("{} exists: give the name of a new file", args.file.display())));
    }
    let mut partial = args.file.clone().into_os_string();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let cannot = || format!("{} cannot be written", partial.display());
    match fs::remove_file(&partial) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).context(cannot),
        _ => {}
    }
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial).context(cannot)?;
    let taken = download(&Target::find(&args.target)?, &mut file).await;
    let summary = taken.and_then(|()| {
        file.sync_all().context(cannot)?;
        read(&partial)
    });
    let summary = match summary {
        Ok(summary) => summary,
        Err(failure) => {
            let _ = fs::remove_file(&partial);
            return Err(failure);
        }
    };
    fs::rename(&partial, &args.file).context(|| format!("{} cannot be written", args.file.display()))?;
    let directory = args.file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::File::open(directory)
        .and_then(|directory| directory.sync_all())
        .context(|| format!("{} cannot be flushed", directory.display()))?;
    show(&args.file, &summary, args.json)?;
    if !args.json {
        println!("it holds the secrets of all access keys: keep it as you keep those");
    }
    Ok(())
}

/// Asks the nodes in turn until one answers.
async fn download(target: &Target, file: &mut fs::File) -> Result<(), Failure> {
    let credentials = target.credentials()?;
    let mut whys = Vec::new();
    for admin in &target.admins {
        let request = Request::builder()
            .method(Method::GET)
            .uri(BACKUP_PATH)
            .header(http::header::HOST, admin)
            .header(http::header::AUTHORIZATION, basic_auth::header_value(&credentials))
            .body(Full::default())
            .context(|| format!("{admin} is no address"))?;
        let began = HttpClient::new(admin).download(request, |piece| file.write_all(&piece)).await;
        match began {
            Ok(status) if status.is_success() => return Ok(()),
            Ok(status) => whys.push(format!("{admin} answers {status}")),
            Err(error) => whys.push(format!("{admin}: {error}")),
        }
        file.set_len(0).context(|| "the file cannot be emptied".into())?;
        std::io::Seek::rewind(file).context(|| "the file cannot be emptied".into())?;
    }
    Err(Failure(whys.join("; ")))
}

fn check(args: &MetadataCheckArgs) -> Result<(), Failure> {
    show(&args.file, &read(&args.file)?, args.json)
}

fn open(path: &Path) -> Result<BufReader<fs::File>, String> {
    let file = fs::File::open(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    Ok(BufReader::with_capacity(1 << 20, file))
}

fn read(path: &Path) -> Result<Summary, Failure> {
    let checked = backup::check(open(path).map_err(Failure)?);
    checked.map_err(|why| Failure(format!("{} is no usable backup: {why}", path.display())))
}

fn show(path: &Path, summary: &Summary, json: bool) -> Result<(), Failure> {
    let bytes = fs::metadata(path).context(|| format!("{} cannot be read", path.display()))?.len();
    let numbers = |nodes: &[NodeId]| nodes.iter().map(|node| node.0).collect::<Vec<u32>>();
    let groups = summary.groups.iter().map(|group| GroupView {
        group: group.group.0,
        rows: group.rows,
        applied: group.applied.0,
        voters: numbers(&group.voters),
    });
    let view = BackupView {
        file: path.to_owned(),
        bytes,
        cluster: summary.cluster.to_string(),
        cluster_generation: summary.cluster_generation,
        taken_ms: summary.taken_ms,
        buckets: summary.buckets,
        versions: summary.versions,
        nodes: summary.nodes.iter().map(|(node, _)| node.0).collect(),
        groups: groups.collect(),
    };
    if json {
        return print_json(&view);
    }
    let size = show_bytes(bytes);
    println!("{}: {size}, every byte as it was written", path.display());
    println!(
        "cluster {} (generation {}) as of {}: {} buckets, {} versions of objects, nodes {}",
        view.cluster,
        view.cluster_generation,
        iso8601(view.taken_ms),
        view.buckets,
        view.versions,
        list(&view.nodes)
    );
    for group in &view.groups {
        println!(
            "group {}: {} rows, up to entry {}, voters {}",
            group.group,
            group.rows,
            group.applied,
            list(&group.voters)
        );
    }
    Ok(())
}

fn list(nodes: &[u32]) -> String {
    nodes.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}

async fn restore(args: MetadataRestoreArgs) -> Result<ExitCode, Failure> {
    let directory = |path: &Path| -> Result<Arc<dyn Disk>, Failure> {
        if !path.is_dir() {
            return Err(Failure(format!("{} is no directory", path.display())));
        }
        let disk = RealDisk::open_or_create(path).context(|| format!("{} cannot be opened", path.display()))?;
        Ok(Arc::new(disk))
    };
    let summary = read(&args.file)?;
    let (data, metadata) =
        (directory(&args.data)?, directory(&args.disk.clone().unwrap_or_else(|| args.data.join("disk0")))?);
    let _lock =
        data.lock().map_err(|error| Failure(format!("{}: {error}: stop the node first", args.data.display())))?;
    let generation = summary.generation_above(args.above.unwrap_or(0)).map_err(Failure)?;
    let begun = node::offline::restoring(&*data).await.map_err(|error| Failure(error.to_string()))?;
    let goes_on = begun.is_some_and(|begun| (begun.generation, begun.digest) == (generation, summary.digest));
    let known = membership::load_generation(&args.data)?;
    if known >= generation && !goes_on {
        return Err(Failure(format!(
            "this node is of generation {known} of the cluster already, and would be restored as generation {generation}: it was \
             restored before, or the cluster went on after the backup; to restore all nodes, once more, give --above {known} on \
             each of them"
        )));
    }
    if !args.yes && !confirmed(&summary, generation)? {
        println!("nothing was changed");
        return Ok(ExitCode::from(1));
    }
    let (env, _) = real_env(NodeId(0), tokio::runtime::Handle::current(), Arc::default());
    let target = backup::Target { env: &env, data: &*data, metadata, new_disk: args.new_disk, generation };
    let done = backup::restore(target, || open(&args.file)).await.map_err(Failure)?;
    membership::store_generation(&args.data, generation)?;
    backup::finish(&*data).map_err(Failure)?;
    for line in done {
        println!("{line}");
    }
    println!(
        "restored as generation {generation}: do the same on the other nodes, check them with `henge fsck`, then start them"
    );
    Ok(ExitCode::SUCCESS)
}

fn confirmed(summary: &Summary, generation: u32) -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure(
            "a restoration asks before it changes anything: run it in a terminal, or with --yes".into(),
        ));
    }
    println!("This node's metadata becomes what it was at {}:", iso8601(summary.taken_ms));
    println!("objects written since are gone, and of those deleted or overwritten since the bytes are gone.");
    println!("All nodes have to be stopped, and each has to be restored from this file (as generation {generation}).");
    print!("Type `restore` to go on: ");
    std::io::stdout().flush().context(|| "the terminal cannot be written".into())?;
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).context(|| "the terminal cannot be read".into())?;
    Ok(line.trim() == "restore")
}
