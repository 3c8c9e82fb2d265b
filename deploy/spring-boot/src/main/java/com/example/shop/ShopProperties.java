package com.example.shop;

import java.time.Duration;
import org.springframework.boot.context.properties.ConfigurationProperties;
import org.springframework.boot.context.properties.bind.DefaultValue;

/**
 * What the application says of itself, and how it misbehaves.
 *
 * @param name said in every answer
 * @param version said in every answer
 * @param startDelay how long it takes longer to start than it would
 * @param ready whether it ever says that it is ready
 * @param failing whether every page is a 500
 */
@ConfigurationProperties("shop")
public record ShopProperties(
        @DefaultValue("shop") String name,
        @DefaultValue("dev") String version,
        @DefaultValue("0s") Duration startDelay,
        @DefaultValue("true") boolean ready,
        @DefaultValue("false") boolean failing) {

    String release() {
        return name + " " + version;
    }
}
