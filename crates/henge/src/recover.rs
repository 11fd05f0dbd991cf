//! `henge recover`: makes a survivor the sole voter of its cluster. Offline, asks first, and says what it did.

use base::env::Disk;
use base::ids::NodeId;
use std::io::{BufRead, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;

use crate::cli::RecoverArgs;
use crate::env::{RealDisk, real_env};
use crate::failure::{Context, Failure};

pub async fn run(args: RecoverArgs) -> Result<ExitCode, Failure> {
    let open = |path: &std::path::Path| -> Result<Arc<dyn Disk>, Failure> {
        if !path.is_dir() {
            return Err(Failure(format!("{} is no directory", path.display())));
        }
        let disk = RealDisk::open_or_create(path).context(|| format!("{} cannot be opened", path.display()))?;
        Ok(Arc::new(disk))
    };
    let metadata = args.disk.clone().unwrap_or_else(|| args.data.join("disk0"));
    let (data, metadata) = (open(&args.data)?, open(&metadata)?);
    let _lock =
        data.lock().map_err(|error| Failure(format!("{}: {error}: stop the node first", args.data.display())))?;
    if !args.yes && !confirmed()? {
        println!("nothing was changed");
        return Ok(ExitCode::from(1));
    }
    let (env, _) = real_env(NodeId(0), tokio::runtime::Handle::current(), std::sync::Arc::default());
    let done = node::offline::recover(&env, &*data, metadata).await.map_err(Failure)?;
    for line in done {
        println!("{line}");
    }
    println!("start the node; then remove the lost nodes with `henge node remove ID --lost` and add new ones");
    Ok(ExitCode::SUCCESS)
}

fn confirmed() -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure(
            "`henge recover` asks before it changes anything: run it in a terminal, or with --yes".into(),
        ));
    }
    println!(
        "This node becomes the only voter of its cluster. What only the other voters had is lost, and they can never"
    );
    println!("come back as they are. Do this only when a majority of the voters is gone for good.");
    print!("Type `recover` to go on: ");
    std::io::stdout().flush().context(|| "the terminal cannot be written".into())?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).context(|| "the terminal cannot be read".into())?;
    Ok(line.trim() == "recover")
}
