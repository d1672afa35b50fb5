//! The proxy in an axum application: `cargo run --features axum --example axum_app [proxy.toml]`.
//! README.md shows this file.

use std::net::SocketAddr;

use axum::Router;
use axum::routing::get;
use mcp_proxy::{Options, Proxy, ProxyConfig};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve())
}

async fn serve() -> Result<(), Box<dyn std::error::Error>> {
    let file = std::env::args().nth(1).unwrap_or("proxy.toml".to_owned());
    let config = ProxyConfig::load(file.as_ref())?;
    let options = Options { listen: false, ..Options::default() }; // the application listens
    let proxy = Proxy::from_config_with(config, options).await?;
    let (router, handle) = proxy.into_router();

    let app = Router::new().route("/", get(|| async { "my own page" })).nest("/tools", router);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("serving at http://{}/tools/mcp", listener.local_addr()?);
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, app).await?;
    handle.shutdown(); // ends what is in flight in good order; handle.wait() waits for that
    Ok(())
}
