"""The store's operations as Lua, each one atomic in Redis: the checks, the write, the version and the change entry.

Every script first removes what has expired, by the server's clock, with one deletion entry each: whichever client comes
first does it, and nobody ever reads an expired record. Records of kinds that are not known here are left to who knows
them. Works with Redis 6.2 and later.
"""

from __future__ import annotations

from infaas.store.keys import lua_names

FORGET_VERSIONS_AFTER_MS = 3_600_000
"""A record written again within this time after its deletion goes on counting its versions."""

# ARGV[1] is an epoch to take if there is none, ARGV[2] the stream's length; an operation's own start at ARGV[3].
_PRELUDE = (
    lua_names()
    + """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local micros = string.format('%.0f', time[1] * 1000000 + time[2])

local function epoch()
  local known = redis.call('GET', EPOCH)
  if known then return known end
  redis.call('SET', EPOCH, ARGV[1])
  return ARGV[1]
end

local function sequence_of(id) return tonumber(string.match(id, '^%d+')) end

local function last_id()
  local last = redis.call('XREVRANGE', CHANGES, '+', '-', 'COUNT', 1)[1]
  return last and last[1] or '0-0'
end

local function expiry_of(kind) return UNFOLLOWED[kind] and EXPIRY_UNFOLLOWED or EXPIRY end

local function append(kind, key, version, value)
  if UNFOLLOWED[kind] then return end
  local id = string.format('%.0f', sequence_of(last_id()) + 1) .. '-' .. micros
  local entry = {'kind', kind, 'key', key, 'version', version}
  if value then entry[7] = 'value'; entry[8] = value end
  redis.call('XADD', CHANGES, 'MAXLEN', '~', ARGV[2], id, unpack(entry))
end

local function remove(kind, key)
  local field = kind .. ':' .. key
  redis.call('HDEL', RECORDS[kind], key)
  redis.call('ZREM', expiry_of(kind), field)
  redis.call('ZADD', GONE, now, field)
  append(kind, key, redis.call('HINCRBY', VERSIONS, field, 1), nil)
end

for _, expiry in ipairs({EXPIRY, EXPIRY_UNFOLLOWED}) do
  for _, field in ipairs(redis.call('ZRANGEBYSCORE', expiry, '-inf', now)) do
    local split = string.find(field, ':', 1, true)
    local kind = string.sub(field, 1, split - 1)
    if RECORDS[kind] then
      epoch()
      redis.call('ZREM', expiry, field)
      remove(kind, string.sub(field, split + 1))
    end
  end
end
"""
    + f"local forget = redis.call('ZRANGEBYSCORE', GONE, '-inf', now - {FORGET_VERSIONS_AFTER_MS}, 'LIMIT', 0, 100)"
    + """
for _, field in ipairs(forget) do
  redis.call('HDEL', VERSIONS, field)
  redis.call('ZREM', GONE, field)
end

local function current_version(kind, key)
  if redis.call('HEXISTS', RECORDS[kind], key) == 0 then return 0 end
  return tonumber(redis.call('HGET', VERSIONS, kind .. ':' .. key))
end

local function holds(name, holder, fence)
  local ends = redis.call('ZSCORE', LEASE_EXPIRY, name)
  return ends and tonumber(ends) > now and redis.call('HGET', LEASE_HOLDERS, name) == holder
    and redis.call('HGET', LEASE_FENCES, name) == fence
end

-- What forbids a write: its lease is lost, or the version is another one. ARGV[3] kind, ARGV[4] key.
local function objection(expect, lease, holder, fence)
  if lease ~= '' and not holds(lease, holder, fence) then return {'fence'} end
  if expect ~= '' then
    local version = current_version(ARGV[3], ARGV[4])
    if version ~= tonumber(expect) then return {'version', version} end
  end
  return nil
end
"""
)

EPOCH = _PRELUDE + "return epoch()"

GET = (
    _PRELUDE
    + """
local value = redis.call('HGET', RECORDS[ARGV[3]], ARGV[4])
if not value then return false end
return {value, current_version(ARGV[3], ARGV[4])}
"""
)

LIST = (
    _PRELUDE
    + """
local found = {}
for i = 3, #ARGV do
  local flat = redis.call('HGETALL', RECORDS[ARGV[i]])
  for j = 1, #flat, 2 do
    found[#found + 1] = {ARGV[i], flat[j], flat[j + 1], current_version(ARGV[i], flat[j])}
  end
end
return {epoch(), last_id(), found}
"""
)

# ARGV: kind, key, value, expect or '', ttl in ms or '', lease or '', holder, fence
PUT = (
    _PRELUDE
    + """
local no = objection(ARGV[6], ARGV[8], ARGV[9], ARGV[10])
if no then return no end
local kind, key, field = ARGV[3], ARGV[4], ARGV[3] .. ':' .. ARGV[4]
epoch()
redis.call('HSET', RECORDS[kind], key, ARGV[5])
redis.call('ZREM', GONE, field)
local expiry = expiry_of(kind)
if ARGV[7] == '' then redis.call('ZREM', expiry, field) else redis.call('ZADD', expiry, now + ARGV[7], field) end
local version = redis.call('HINCRBY', VERSIONS, field, 1)
append(kind, key, version, ARGV[5])
return {'ok', version}
"""
)

# ARGV: kind, key, expect or '', lease or '', holder, fence
DELETE = (
    _PRELUDE
    + """
if ARGV[6] ~= '' and not holds(ARGV[6], ARGV[7], ARGV[8]) then return {'fence'} end
if current_version(ARGV[3], ARGV[4]) == 0 then return {'ok', 0} end
local no = objection(ARGV[5], '', '', '')
if no then return no end
remove(ARGV[3], ARGV[4])
return {'ok', 1}
"""
)

# ARGV: kind, key, ttl in ms
TOUCH = (
    _PRELUDE
    + """
if current_version(ARGV[3], ARGV[4]) == 0 then return 0 end
redis.call('ZADD', expiry_of(ARGV[3]), now + ARGV[5], ARGV[3] .. ':' .. ARGV[4])
return 1
"""
)

# ARGV: cursor, epoch, most entries. A cursor that the stream neither holds nor has trimmed away means that the server
# came back with an older state: then what the store lacks was lost, not deleted, and it gets a new epoch.
READ = (
    _PRELUDE
    + """
local cursor = ARGV[3]
if epoch() ~= ARGV[4] then return {'epoch'} end
if #redis.call('XRANGE', CHANGES, cursor, cursor) == 0 then
  local first = redis.call('XRANGE', CHANGES, '-', '+', 'COUNT', 1)[1]
  local oldest = first and sequence_of(first[1])
  if cursor == '0-0' then
    if oldest and oldest > 1 then return {'trimmed'} end
  elseif oldest and oldest > sequence_of(cursor) then
    return {'trimmed'}
  else
    redis.call('SET', EPOCH, ARGV[1])
    return {'older'}
  end
end
return {'ok', redis.call('XRANGE', CHANGES, '(' .. cursor, '+', 'COUNT', ARGV[5])}
"""
)

# ARGV: lease, holder, ttl in ms. Fences start at the server's clock, so that they do not go back when it is emptied.
ACQUIRE = (
    _PRELUDE
    + """
local name, holder = ARGV[3], ARGV[4]
local ends = redis.call('ZSCORE', LEASE_EXPIRY, name)
local fence = redis.call('HGET', LEASE_FENCES, name)
if ends and tonumber(ends) > now then
  if redis.call('HGET', LEASE_HOLDERS, name) ~= holder then return false end
else
  fence = string.format('%.0f', math.max(now, (tonumber(fence) or 0) + 1))
  epoch()
  redis.call('HSET', LEASE_FENCES, name, fence)
  redis.call('HSET', LEASE_HOLDERS, name, holder)
end
redis.call('ZADD', LEASE_EXPIRY, now + ARGV[5], name)
return fence
"""
)

# ARGV: lease, holder, fence, ttl in ms
RENEW = (
    _PRELUDE
    + """
if not holds(ARGV[3], ARGV[4], ARGV[5]) then return 0 end
redis.call('ZADD', LEASE_EXPIRY, now + ARGV[6], ARGV[3])
return 1
"""
)

# ARGV: lease, holder, fence
RELEASE = (
    _PRELUDE
    + """
if not holds(ARGV[3], ARGV[4], ARGV[5]) then return 0 end
redis.call('ZREM', LEASE_EXPIRY, ARGV[3])
redis.call('HDEL', LEASE_HOLDERS, ARGV[3])
return 1
"""
)

HOLDERS = (
    _PRELUDE
    + """
local found = {}
for _, name in ipairs(redis.call('ZRANGEBYSCORE', LEASE_EXPIRY, '(' .. string.format('%.0f', now), '+inf')) do
  found[#found + 1] = {name, redis.call('HGET', LEASE_HOLDERS, name)}
end
return found
"""
)
