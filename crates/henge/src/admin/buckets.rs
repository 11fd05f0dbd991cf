//! Buckets, their quotas and fences, and pools.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};

use super::{
    Admin, BucketChange, BucketView, FenceFloor, FenceView, FenceWish, Named, PoolView, PoolWish, QuotaView, QuotaWish,
    Refused, check_plain_name, refuse, refuse_error,
};

pub(super) async fn show_quota(
    State(admin): State<Admin>,
    headers: HeaderMap,
    Path(name): Path<String>,
) -> Result<Json<QuotaView>, Refused> {
    let client = admin.for_root(&headers)?.client();
    let bucket = client.bucket(&name).await.map_err(refuse_error)?;
    quota_view(&client, &bucket).await
}

pub(super) async fn set_quota(
    State(admin): State<Admin>,
    headers: HeaderMap,
    Path(name): Path<String>,
    Json(wish): Json<QuotaWish>,
) -> Result<Json<QuotaView>, Refused> {
    let client = admin.for_root(&headers)?.client();
    let bucket = client.bucket(&name).await.map_err(refuse_error)?;
    let is_some = wish.bytes_max.is_some() || wish.objects_max.is_some();
    let quota = is_some.then_some(client::Quota { bytes_max: wish.bytes_max, objects_max: wish.objects_max });
    client.set_quota(&bucket, quota).await.map_err(refuse_error)?;
    tracing::info!(target: "audit", name, ?quota, "quota of a bucket changed");
    let bucket = client.bucket(&name).await.map_err(refuse_error)?;
    quota_view(&client, &bucket).await
}

async fn quota_view(client: &client::Client, bucket: &client::BucketInfo) -> Result<Json<QuotaView>, Refused> {
    let kept = bucket.configuration(client::ConfigurationKind::Quota);
    let quota: Option<client::Quota> = kept.and_then(|kept| kept.decode());
    let used = client.usage(bucket).await.map_err(refuse_error)?;
    let counted = |number: u64| quota.is_some().then_some(number);
    Ok(Json(QuotaView {
        bytes_max: quota.and_then(|quota| quota.bytes_max),
        objects_max: quota.and_then(|quota| quota.objects_max),
        bytes: counted(used.bytes),
        objects: counted(used.objects),
        counting: quota.is_some() && !used.complete,
    }))
}

pub(super) async fn list_buckets(
    State(admin): State<Admin>,
    headers: HeaderMap,
) -> Result<Json<Vec<BucketView>>, Refused> {
    let client = admin.for_root(&headers)?.client();
    let buckets = client.list_buckets().await.map_err(refuse_error)?;
    let region = client.region();
    Ok(Json(buckets.into_iter().map(|bucket| bucket_view(bucket, region.clone())).collect()))
}

pub(super) async fn create_bucket(
    State(admin): State<Admin>,
    headers: HeaderMap,
    Json(request): Json<Named>,
) -> Result<Json<BucketView>, Refused> {
    let node = admin.for_root(&headers)?;
    check_bucket_name(&request.name)?;
    let owner = admin.root().credentials.access_key;
    let bucket = node.client().create_bucket(&request.name, &owner).await.map_err(refuse_error)?;
    tracing::info!(target: "audit", name = bucket.name, "bucket created");
    Ok(Json(bucket_view(bucket, node.client().region())))
}

pub(super) async fn change_bucket(
    State(admin): State<Admin>,
    headers: HeaderMap,
    Path(name): Path<String>,
    Json(change): Json<BucketChange>,
) -> Result<Json<BucketView>, Refused> {
    let client = admin.for_root(&headers)?.client();
    let versioning = match change.versioning.as_deref() {
        Some("enabled") => Some(client::Versioning::Enabled),
        Some("suspended") => Some(client::Versioning::Suspended),
        Some(_) => return Err(refuse(StatusCode::BAD_REQUEST, "versioning is enabled or suspended")),
        None => None,
    };
    let acknowledge = change.acknowledge.as_deref().map(|name| {
        let unknown = || refuse(StatusCode::BAD_REQUEST, "acknowledge is all-strict, all, majority or one");
        client::Acknowledgement::from_name(name).ok_or_else(unknown)
    });
    if let Some(acknowledge) = acknowledge.transpose()? {
        client.set_acknowledgement(&name, acknowledge).await.map_err(refuse_error)?;
        tracing::info!(target: "audit", name, ?acknowledge, "bucket changed");
    }
    if let Some(versioning) = versioning {
        client.set_versioning(&name, versioning).await.map_err(refuse_error)?;
        tracing::info!(target: "audit", name, ?versioning, "bucket changed");
    }
    if let Some(required) = change.fence_required {
        client.require_fence(&name, required).await.map_err(refuse_error)?;
        tracing::info!(target: "audit", name, fence_required = required, "bucket changed");
    }
    Ok(Json(bucket_view(client.bucket(&name).await.map_err(refuse_error)?, client.region())))
}

pub(super) async fn next_fence(
    State(admin): State<Admin>,
    headers: HeaderMap,
    Json(wish): Json<FenceWish>,
) -> Result<Json<FenceView>, Refused> {
    let client = admin.for_root(&headers)?.client();
    check_fence_key(&wish.key)?;
    let token = client.next_fence().await.map_err(refuse_error)?;
    tracing::info!(target: "audit", key = wish.key, token, "fence token handed out");
    Ok(Json(FenceView { key: wish.key, token }))
}

fn check_fence_key(key: &str) -> Result<(), Refused> {
    let valid = (1..=client::FENCE_KEY_LEN_MAX).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic());
    let message = "the key of a fence has 1 to 128 visible ASCII characters";
    if valid { Ok(()) } else { Err(refuse(StatusCode::BAD_REQUEST, message)) }
}

pub(super) async fn reset_fence(
    State(admin): State<Admin>,
    headers: HeaderMap,
    Path(name): Path<String>,
    Json(floor): Json<FenceFloor>,
) -> Result<Json<FenceFloor>, Refused> {
    let client = admin.for_root(&headers)?.client();
    check_fence_key(&floor.key)?;
    client.reset_fence(&name, floor.key.clone().into(), floor.token).await.map_err(refuse_error)?;
    tracing::info!(target: "audit", name, key = floor.key, token = ?floor.token, "floor of a fence reset");
    Ok(Json(floor))
}

pub(super) async fn list_pools(State(admin): State<Admin>, headers: HeaderMap) -> Result<Json<Vec<PoolView>>, Refused> {
    let client = admin.for_root(&headers)?.client();
    Ok(Json(client.pools().into_iter().map(PoolView::from).collect()))
}

pub(super) async fn create_pool(
    State(admin): State<Admin>,
    headers: HeaderMap,
    Json(wish): Json<PoolWish>,
) -> Result<Json<PoolView>, Refused> {
    let client = admin.for_root(&headers)?.client();
    check_plain_name(&wish.name)?;
    if wish.copies < 2 {
        return Err(refuse(
            StatusCode::BAD_REQUEST,
            "a pool has at least 2 copies: with one, every lost disk is lost data",
        ));
    }
    let pool = client.create_pool(&wish.name, &wish.class, wish.copies).await.map_err(refuse_error)?;
    tracing::info!(target: "audit", name = pool.name, class = pool.class, copies = pool.copies, "pool created");
    Ok(Json(pool.into()))
}

fn bucket_view(bucket: client::BucketInfo, region: String) -> BucketView {
    let fence_required = bucket.requires_fence();
    let acknowledge = bucket.acknowledgement.name().to_owned();
    let versioning = match bucket.versioning {
        client::Versioning::Off => "off",
        client::Versioning::Enabled => "enabled",
        client::Versioning::Suspended => "suspended",
    };
    BucketView {
        name: bucket.name,
        owner: bucket.owner,
        created_ms: bucket.created_ms,
        region,
        versioning: versioning.into(),
        fence_required,
        acknowledge,
    }
}

/// The rules of S3 for names that also work as host names.
pub(super) fn check_bucket_name(name: &str) -> Result<(), Refused> {
    if gateway_s3::is_bucket_name(name) {
        return Ok(());
    }
    let rule = "the name of a bucket has 3 to 63 lower-case letters, digits, '-' and '.', and looks like a host name";
    Err(refuse(StatusCode::BAD_REQUEST, rule))
}
