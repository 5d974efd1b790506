//! A bucket that speaks S3. The only user of object_store and tokio, whose runtime is this thread.

use anyhow::Context;
use futures_util::stream::{StreamExt, TryStreamExt, iter};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::path::Path;
use object_store::{Error, MultipartUpload, ObjectStore, ObjectStoreExt};
use tokio::runtime::{Builder, Runtime};

use super::{Far, Item, TakeFn};

/// Files on their way at once, and how many of those above [`LARGE`]: each is in memory.
const AT_ONCE: usize = 32;
const LARGE_AT_ONCE: usize = 3;
const LARGE: u64 = 8 << 20;
/// Bytes of a part of a large file.
const PART: usize = 16 << 20;

/// See the module.
#[derive(Debug)]
pub struct S3 {
    client: AmazonS3,
    prefix: String,
    runtime: Runtime,
}

impl S3 {
    /// `s3://bucket/prefix`. `settings`: the usual variables, `AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL` and so on.
    pub fn open(url: &str, settings: impl IntoIterator<Item = (String, String)>) -> anyhow::Result<Self> {
        // Fails if it was done before.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let place = url.strip_prefix("s3://").with_context(|| format!("`{url}` is not s3://BUCKET/PREFIX"))?;
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        anyhow::ensure!(!bucket.is_empty(), "`{url}` names no bucket");
        let mut builder = AmazonS3Builder::new().with_bucket_name(bucket);
        for (name, value) in settings {
            if let Ok(key) = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>() {
                builder = builder.with_config(key, value);
            }
        }
        let client = builder.build().with_context(|| format!("could not open `{url}`"))?;
        let runtime = Builder::new_current_thread().enable_all().build()?;
        Ok(Self { client, prefix: Path::from(prefix).to_string(), runtime })
    }

    fn path(&self, name: &str) -> Path {
        Path::from(format!("{}/{name}", self.prefix))
    }

    /// Its name below the prefix.
    fn name(&self, path: &Path) -> Option<String> {
        let path: &str = path.as_ref();
        Some(path.strip_prefix(&self.prefix)?.trim_start_matches('/').to_owned())
    }

    async fn put_one(&self, item: &Item, bytes: Vec<u8>) -> anyhow::Result<()> {
        let path = self.path(&item.name);
        let put = async {
            if bytes.len() <= PART {
                return self.client.put(&path, bytes.into()).await.map(drop);
            }
            let mut upload = self.client.put_multipart(&path).await?;
            let parts: Vec<_> = bytes.chunks(PART).map(|part| upload.put_part(part.to_vec().into())).collect();
            let sent = iter(parts).buffer_unordered(LARGE_AT_ONCE).try_for_each(|()| async { Ok(()) }).await;
            match sent {
                Ok(()) => upload.complete().await.map(drop),
                Err(error) => {
                    // Its parts would be paid for.
                    let _ = upload.abort().await;
                    Err(error)
                }
            }
        };
        put.await.with_context(|| format!("could not send `{}`", item.name))
    }

    async fn get_one(&self, item: &Item) -> anyhow::Result<Option<impl AsRef<[u8]>>> {
        let got = async { self.client.get(&self.path(&item.name)).await?.bytes().await };
        match got.await {
            Err(Error::NotFound { .. }) => Ok(None),
            got => Ok(Some(got.with_context(|| format!("could not fetch `{}`", item.name))?)),
        }
    }
}

/// Small files, and large ones, with how many of them go at once.
fn lanes(items: &[Item]) -> [(Vec<&Item>, usize); 2] {
    let (large, small) = items.iter().partition(|item| item.size > LARGE);
    [(small, AT_ONCE), (large, LARGE_AT_ONCE)]
}

impl Far for S3 {
    fn list(&self, folder: &str) -> anyhow::Result<Vec<Item>> {
        let listed = self.client.list(Some(&self.path(folder)));
        let items = listed.try_filter_map(|meta| async move {
            Ok(self.name(&meta.location).map(|name| Item { name, size: meta.size }))
        });
        self.runtime.block_on(items.try_collect()).with_context(|| format!("could not list `{folder}`"))
    }

    fn there(&self, items: &[Item]) -> anyhow::Result<Vec<Item>> {
        let sizes = items.iter().map(|Item { name, size: _ }| async move {
            match self.client.head(&self.path(name)).await {
                Err(Error::NotFound { .. }) => Ok(None),
                found => {
                    let size = found.with_context(|| format!("could not look for `{name}`"))?.size;
                    anyhow::Ok(Some(Item { name: name.clone(), size }))
                }
            }
        });
        let found = iter(sizes).buffer_unordered(AT_ONCE).try_filter_map(|item| async { Ok(item) });
        self.runtime.block_on(found.try_collect())
    }

    fn put(&self, items: &[Item], read: &mut dyn FnMut(&Item) -> Option<Vec<u8>>) -> anyhow::Result<()> {
        for (items, at_once) in lanes(items) {
            let read = items.into_iter().filter_map(|item| Some((item, read(item)?)));
            let sent = iter(read).map(|(item, bytes)| self.put_one(item, bytes)).buffer_unordered(at_once);
            self.runtime.block_on(sent.try_for_each(|()| async { Ok(()) }))?;
        }
        Ok(())
    }

    fn get(&self, items: &[Item], take: &mut TakeFn<'_>) -> anyhow::Result<()> {
        for (items, at_once) in lanes(items) {
            let got = iter(items).map(|item| async move { anyhow::Ok((item, self.get_one(item).await?)) });
            let mut got = got.buffer_unordered(at_once);
            self.runtime.block_on(async {
                while let Some((item, bytes)) = got.try_next().await? {
                    take(item, bytes.as_ref().map(AsRef::as_ref))?;
                }
                anyhow::Ok(())
            })?;
        }
        Ok(())
    }
}
