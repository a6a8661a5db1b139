/* thread.c - the sessions of this process, by store and thread. */
#include "thread.h"

#include "client.h"

typedef struct entry {
    struct entry *next;
    pthread_t thread;
    se_session session;
} entry;

typedef struct registered {
    struct registered *next;
    uint64_t id;
    uint64_t fork_count;
    se_store *store;
    entry *entries;
} registered;

_Thread_local se_thread_cache se_thread_last;
uint64_t se_fork_count = 1;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t exit_key;
static registered *stores;
static uint64_t last_id;

static void before_fork(void) { pthread_mutex_lock(&lock); }
static void after_fork_parent(void) { pthread_mutex_unlock(&lock); }
static void after_fork_child(void) {
    se_fork_count++;
    pthread_mutex_unlock(&lock);
}

/* A thread has ended: its slots are free again. */
static void thread_ends(void *unused) {
    (void)unused;
    pthread_t self = pthread_self();
    pthread_mutex_lock(&lock);
    for (registered *at = stores; at; at = at->next) {
        for (entry **link = &at->entries; at->fork_count == se_fork_count && *link;) {
            entry *found = *link;
            if (!pthread_equal(found->thread, self)) {
                link = &found->next;
                continue;
            }
            *link = found->next;
            se_session_close(&found->session);
            free(found);
        }
    }
    pthread_mutex_unlock(&lock);
}

static void set_up(void) {
    pthread_key_create(&exit_key, thread_ends);
    pthread_atfork(before_fork, after_fork_parent, after_fork_child);
}

uint64_t se_threads_open(se_store *store) {
    pthread_once(&once, set_up);
    registered *added = calloc(1, sizeof *added);
    if (!added)
        return 0;
    pthread_mutex_lock(&lock);
    bool first = last_id == 0;
    added->id = ++last_id;
    added->fork_count = se_fork_count;
    added->store = store;
    added->next = stores;
    stores = added;
    pthread_mutex_unlock(&lock);
    if (first && store->identity != 0)
        se_client_clear_own(store);
    return added->id;
}

static void drop_entries(registered *from, bool leave) {
    while (from->entries) {
        entry *found = from->entries;
        from->entries = found->next;
        if (leave)
            se_session_close(&found->session);
        free(found);
    }
}

void se_threads_close(uint64_t threads_id) {
    pthread_mutex_lock(&lock);
    for (registered **link = &stores; *link; link = &(*link)->next) {
        registered *found = *link;
        if (found->id != threads_id)
            continue;
        *link = found->next;
        drop_entries(found, found->fork_count == se_fork_count);
        free(found);
        break;
    }
    pthread_mutex_unlock(&lock);
    if (se_thread_last.threads_id == threads_id)
        se_thread_last.threads_id = 0;
}

static registered *find(uint64_t threads_id) {
    registered *at = stores;
    while (at && at->id != threads_id)
        at = at->next;
    return at;
}

bool se_threads_committing(uint64_t threads_id) {
    pthread_t self = pthread_self();
    bool found = false;
    pthread_mutex_lock(&lock);
    const registered *owner = find(threads_id);
    for (const entry *at = owner ? owner->entries : NULL; at && !found; at = at->next)
        found = at->session.committing && !pthread_equal(at->thread, self);
    pthread_mutex_unlock(&lock);
    return found;
}

void se_threads_after_fork(uint64_t threads_id) {
    pthread_mutex_lock(&lock);
    registered *found = find(threads_id);
    if (found && found->fork_count != se_fork_count) {
        drop_entries(found, false);
        found->fork_count = se_fork_count;
    }
    pthread_mutex_unlock(&lock);
}

static se_status session_of(registered *owner, se_session **session) {
    pthread_t self = pthread_self();
    for (entry *at = owner->entries; at; at = at->next) {
        if (pthread_equal(at->thread, self)) {
            *session = &at->session;
            return SE_OK;
        }
    }
    entry *added = calloc(1, sizeof *added);
    if (!added)
        return SE_FULL;
    se_status status = se_session_open(&added->session, owner->store);
    if (status != SE_OK) {
        free(added);
        return status;
    }
    added->thread = self;
    added->next = owner->entries;
    owner->entries = added;
    pthread_setspecific(exit_key, owner);
    *session = &added->session;
    return SE_OK;
}

se_status se_thread_session_slow(uint64_t threads_id, se_session **session) {
    pthread_mutex_lock(&lock);
    registered *owner = find(threads_id);
    se_status status = owner ? session_of(owner, session) : SE_CLOSED;
    pthread_mutex_unlock(&lock);
    if (status == SE_OK) {
        se_thread_last.threads_id = threads_id;
        se_thread_last.fork_count = se_fork_count;
        se_thread_last.session = *session;
    }
    return status;
}
