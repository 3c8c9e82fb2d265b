package com.example.shop;

import org.springframework.beans.factory.InitializingBean;
import org.springframework.boot.availability.ApplicationAvailabilityBean;
import org.springframework.boot.availability.AvailabilityChangeEvent;
import org.springframework.boot.availability.ReadinessState;
import org.springframework.stereotype.Component;

/** The switches: slow to start, never ready. In the place of Spring Boot's own bean, which remembers how available it is. */
@Component
class Misbehaviour extends ApplicationAvailabilityBean implements InitializingBean {

    private final ShopProperties shop;

    Misbehaviour(ShopProperties shop) {
        this.shop = shop;
    }

    /** Before the port is opened, as a slow bean would. */
    @Override
    public void afterPropertiesSet() throws InterruptedException {
        Thread.sleep(shop.startDelay().toMillis());
    }

    @Override
    public void onApplicationEvent(AvailabilityChangeEvent<?> event) {
        boolean ready = event.getState() == ReadinessState.ACCEPTING_TRAFFIC;
        super.onApplicationEvent(
                ready && !shop.ready()
                        ? new AvailabilityChangeEvent<>(event.getSource(), ReadinessState.REFUSING_TRAFFIC)
                        : event);
    }
}
